"""Laying out folders for training, and simulated backlighting."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import simulate as simulation
from data.fusion import fuse
from data.images import read_rgb
from data.listing import list_photos
from data.prepare import main, parse_arguments
from data.simulate import simulate, simulate_backlight
from utils.errors import UserError


@pytest.fixture
def photos(tmp_path):
    """Two scenes, dark and light, and one without a partner."""
    rng = np.random.default_rng(0)
    for name, stems in (("dark", "ab"), ("light", "abc")):
        (tmp_path / name).mkdir()
        for stem in stems:
            pixels = rng.integers(60, 256, (40, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels // (3 if name == "dark" else 1)).save(
                tmp_path / name / f"{stem}.png"
            )
    return tmp_path


def run(photos, *arguments):
    main(parse_arguments([str(photos / "out"), *map(str, arguments)]))
    return [
        {Path(path).stem: read_rgb(path) for path in list_photos(photos / "out" / side)}
        for side in ("backlit", "well_lit")
    ]


def test_pairs_keep_one_name_and_their_crops_one_window(photos):
    backlit, well_lit = run(
        photos, "--pairs", photos / "light", photos / "light", "--crops", 2, "--exclude", "c"
    )
    assert sorted(backlit) == [f"pair0_{s}{c}" for s in "ab" for c in ("", "_0", "_1")]
    assert backlit.keys() == well_lit.keys()
    for name, pixels in backlit.items():
        assert np.array_equal(pixels, well_lit[name])
        assert (pixels.shape == (40, 64, 3)) == (name in ("pair0_a", "pair0_b"))


def test_pairs_are_found_by_the_rule_that_metrics_use(photos, capsys):
    for old, new in (("dark/a", "dark/CAF\u00c9"), ("light/a", "light/cafe\u0301")):
        (photos / f"{old}.png").rename(photos / f"{new}.PNG")
    (photos / "dark" / "b.png").rename(photos / "dark" / "b(1).png")
    (photos / "dark" / "b(2).png").write_bytes((photos / "dark" / "b(1).png").read_bytes())
    backlit, well_lit = run(photos, "--pairs", photos / "dark", photos / "light")
    assert list(backlit) == list(well_lit) == ["pair0_CAF\u00c9", "pair0_b(1)"]
    said = capsys.readouterr().err
    assert f"1 not used, since without a partner: {photos / 'light' / 'c.png'}" in said
    assert f"1 not used, since set aside: only (1) counts: {photos / 'dark' / 'b(2).png'}" in said
    (photos / "out").rename(photos / "before")
    backlit, _ = run(
        *(photos, "--pairs", photos / "dark", photos / "light"),
        *("--exclude", "Cafe\u0301", "C", "b(2)"),
    )
    assert list(backlit) == ["pair0_b(1)"]
    said = capsys.readouterr().err
    assert "not used" not in said and said.count("is the name of no photograph") == 1  # C


def test_simulations_are_darker_repeatable_and_differ(photos):
    backlit, well_lit = run(photos, "--simulate", photos / "light", "--variants", 2)
    assert len(backlit) == 6 and backlit.keys() == well_lit.keys()
    assert all(backlit[name].mean() < well_lit[name].mean() for name in backlit)
    assert not np.array_equal(backlit["simulated0_a_0"], backlit["simulated0_a_1"])
    (photos / "out").rename(photos / "before")
    again, _ = run(photos, "--simulate", photos / "light", "--variants", 2)
    assert all(np.array_equal(backlit[name], again[name]) for name in backlit)


def test_the_summary_counts_partners(photos, capsys):
    run(photos, "--pairs", photos / "dark", photos / "light", "--backlit", photos / "light")
    said = f"5 backlit photographs in {photos / 'out'}, 2 of them with a well-lit partner"
    assert said in capsys.readouterr().out


def test_backlit_photographs_have_no_partner_and_are_reduced(photos):
    main(parse_arguments([str(photos / "out"), "--backlit", str(photos / "dark"), "--size", "20"]))
    sizes = [read_rgb(path).shape for path in list_photos(photos / "out" / "backlit")]
    assert sizes == [(20, 32, 3)] * 2
    assert not (photos / "out" / "well_lit").exists()


def test_mistakes_are_sentences(photos):
    with pytest.raises(UserError, match="nothing to prepare"):
        run(photos)
    with pytest.raises(UserError, match="left out"):
        run(photos, "--backlit", photos / "dark", "--exclude", "a", "b")
    with pytest.raises(UserError, match=r"no partner of .*c\.png; --exclude leaves it out"):
        run(photos, "--pairs", photos / "light", photos / "dark")
    assert not (photos / "out").exists()
    (photos / "out").mkdir()
    (photos / "out" / "notes.txt").touch()
    with pytest.raises(UserError, match="not an empty folder"):
        run(photos, "--backlit", photos / "dark")


def test_an_exclusion_that_excludes_nothing_is_named(photos, capsys):
    run(photos, "--simulate", photos / "light", "--exclude", "a", "z")
    assert "--exclude z is the name of no photograph" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "files", "name"),
    [
        ("--backlit dark", "dark/a.png dark/a.jpg", "backlit0_dark_a"),
        ("--backlit .", "dark/a.png sub/dark/a.png", "backlit0_dark_a"),
        ("--simulate .", "dark/a.png light/a.png", "simulated0_a_0"),
        ("--simulate dark", "dark/a.png dark/A.png", "simulated0_a_0"),
        ("--pairs dark dark --crops 1", "dark/a.png dark/a_0.png", "pair0_a_0"),
        ("--fuse x/set --fuse y/set", "x/set/hall/a.png y/set/hall/a.png", "set_hall_a"),
    ],
)
def test_photographs_of_one_name_are_named_and_refused(photos, monkeypatch, options, files, name):
    monkeypatch.chdir(photos)
    contents = Path("dark/a.png").read_bytes()
    for file in map(Path, files.split()):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(contents)
    with pytest.raises(UserError, match=rf"both become {name}\.png; rename one") as error:
        run(photos, *options.split())
    assert all(file in str(error.value) for file in files.split())
    assert not (photos / "out").exists()


def test_pairs_of_two_sizes_are_refused_and_unreadable_ones_left_out(photos, capsys):
    (photos / "light" / "a.png").write_bytes(b"broken")
    backlit, well_lit = run(photos, "--pairs", photos / "dark", photos / "light")
    assert list(backlit) == list(well_lit) == ["pair0_b"]
    assert "a.png" in capsys.readouterr().err
    (photos / "out").rename(photos / "before")
    Image.new("RGB", (9, 9)).save(photos / "light" / "b.png")
    with pytest.raises(UserError, match="different sizes"):
        run(photos, "--pairs", photos / "dark", photos / "light")


def test_simulation_darkens_in_linear_light_and_clips():
    photo = np.full((30, 40, 3), 200, np.uint8)
    results = [simulate_backlight(photo, np.random.default_rng(seed)) for seed in range(30)]
    gains = [(result / 255.0) ** 2.2 / (200 / 255) ** 2.2 for result in results]
    assert all(result.dtype == np.uint8 and result.shape == photo.shape for result in results)
    assert min(gain.min() for gain in gains) < 0.1
    assert min(gain.min() for gain in gains) > 0.02 and max(gain.max() for gain in gains) < 1.32
    assert sum(np.ptp(gain) > 0.1 for gain in gains) > 20  # a mask, not only a gamma


@pytest.fixture
def scene():
    """A bright sky above a ground of which one half is darker."""
    photo = np.full((60, 90, 3), 230, np.uint8)
    photo[30:] = 150
    photo[30:, 45:] = 90
    return photo


def linear_gains(photo, result):
    return (result / 255.0) ** 2.2 / (photo / 255.0) ** 2.2


def test_each_simulation_is_clearly_darker(scene, monkeypatch):
    monkeypatch.setattr(simulation, "NOISY", 0)
    for seed in range(60):
        result = simulate(scene, np.random.default_rng(seed))
        assert result.dtype == np.uint8 and result.shape == scene.shape
        assert result.mean() <= 0.85 * scene.mean()


def test_all_kinds_are_drawn(scene, monkeypatch):
    drawn = []
    for name in ("smooth_mask", "segments_mask"):
        real = getattr(simulation, name)
        monkeypatch.setattr(
            simulation,
            name,
            lambda *photo, name=name, real=real: drawn.append(name) or real(*photo),
        )
    kinds = []
    for seed in range(100):
        drawn.clear()
        simulate(scene, np.random.default_rng(seed))
        assert len(set(drawn)) <= 1  # however often a gain is drawn again
        kinds.append(drawn[0] if drawn else "dim")
    assert all(15 <= kinds.count(kind) <= 55 for kind in ("smooth_mask", "segments_mask", "dim"))


@pytest.mark.parametrize("share", [0, 1])
def test_how_many_are_darkened_as_by_night(share, tmp_path, scene, monkeypatch):
    (tmp_path / "light").mkdir()
    Image.fromarray(scene).save(tmp_path / "light" / "a.png")
    drawn = []
    monkeypatch.setattr(
        simulation, "draw_gain", lambda kind, *_: drawn.append(kind) or np.float64(0.2)
    )
    words = ["--simulate", tmp_path / "light", "--variants", "20", "--night", share]
    assert not main(parse_arguments([str(tmp_path / "out"), *map(str, words)]))
    assert len(drawn) == 20 and drawn.count("dim") == 20 * share


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 300), (50, 3)])
def test_any_photograph_can_be_simulated(shape):
    for value in (0, 255):
        photo = np.full((*shape, 3), value, np.uint8)
        for seed in range(12):
            assert simulate(photo, np.random.default_rng(seed)).shape == photo.shape


def night(scene, seed):
    return simulate(scene, np.random.default_rng(seed), night=1)


def test_a_dim_photograph_is_dim_everywhere(scene):
    gains = [linear_gains(scene, night(scene, seed)).mean(axis=(0, 1)) for seed in range(40)]
    assert 0.003 < np.min(gains) < 0.01 and 0.05 < np.max(gains) < 0.12
    assert 0.012 < np.median(gains) < 0.04  # as of a uniform logarithm


def test_the_darkest_night_can_be_chosen(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(simulation, "NOISY", 0)
    gains = [
        linear_gains(scene, simulate(scene, np.random.default_rng(seed), 1, 0.0005)).mean()
        for seed in range(40)
    ]
    assert 0.0002 < np.min(gains) < 0.001 and 0.05 < np.max(gains) < 0.12
    (tmp_path / "light").mkdir()
    Image.fromarray(scene).save(tmp_path / "light" / "a.png")
    words = ["--simulate", str(tmp_path / "light"), "--night", "1", "--darkest", "0.1"]
    assert not main(parse_arguments([str(tmp_path / "out"), *words]))
    result = read_rgb(tmp_path / "out" / "backlit" / "simulated0_a_0.png")
    assert linear_gains(scene, result).mean() == pytest.approx(0.1, rel=0.05)


def test_regions_of_the_photograph_are_darkened(scene):
    masks = [simulation.segments_mask(scene, np.random.default_rng(seed)) for seed in range(40)]
    assert all(mask.shape == scene.shape[:2] and mask.min() >= 0 for mask in masks)
    assert max(mask.max() for mask in masks) <= 1
    parts = np.s_[5:25], np.s_[35:55, 50:85]
    sky, right = (np.mean([mask[part].mean() for mask in masks]) for part in parts)
    assert sky < 0.35 and right > 0.8  # the dark regions rather than the light ones
    soft = [((mask > 0.05) & (mask < 0.95)).any() for mask in masks]
    assert np.mean(soft) > 0.6  # most have borders, none of them hard


def test_half_of_the_simulations_are_noisy():
    photo = np.full((40, 40, 3), 200, np.uint8)
    spreads = [night(photo, seed).std() for seed in range(60)]
    assert 20 <= np.count_nonzero(np.array(spreads) > 0) <= 40


@pytest.fixture
def brackets(tmp_path):
    """Two scenes of three frames each, one of them brighter than their fusion."""
    rng = np.random.default_rng(0)
    for scene in ("hall", "yard"):
        (tmp_path / "brackets" / scene).mkdir(parents=True)
        light = rng.uniform(0.1, 1, (24, 40, 3))
        for frame, gain in enumerate((0.1, 0.4, 1.6)):
            pixels = np.rint(255 * (gain * light).clip(0, 1) ** (1 / 2.2)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "brackets" / scene / f"{frame}.png")
    return tmp_path


def test_brackets_are_fused_into_partners_of_their_darker_frames(brackets):
    backlit, well_lit = run(brackets, "--fuse", brackets / "brackets", "--crops", 1)
    names = [f"brackets_{scene}_{frame}" for scene in ("hall", "yard") for frame in (0, 1)]
    assert sorted(backlit) == sorted(well_lit) == sorted([*names, *(f"{n}_0" for n in names)])
    frames = [read_rgb(path) for path in list_photos(brackets / "brackets" / "hall")]
    assert np.array_equal(well_lit["brackets_hall_0"], fuse(frames))
    assert np.array_equal(backlit["brackets_hall_0"], frames[0])


def test_a_bracket_with_a_damaged_frame_is_left_out(brackets, capsys):
    (brackets / "brackets" / "hall" / "1.png").write_bytes(b"no picture")
    arguments = ["--fuse", str(brackets / "brackets")]
    assert main(parse_arguments([str(brackets / "out"), *arguments])) == 1
    said = capsys.readouterr().err
    assert "1.png" in said and "hall is left out, since a frame cannot be read" in said
    assert len(list_photos(brackets / "out" / "backlit")) == 2


def test_folders_without_brackets_are_refused(brackets):
    with pytest.raises(UserError, match="no sub-folders"):
        run(brackets, "--fuse", brackets / "brackets" / "hall")
    with pytest.raises(UserError, match="no folder"):
        run(brackets, "--fuse", brackets / "nowhere")
    (brackets / "brackets" / "none").mkdir()
    with pytest.raises(UserError, match="no photographs"):
        run(brackets, "--fuse", brackets / "brackets")
    run(brackets, "--fuse", brackets / "brackets", "--exclude", "none")


def test_frames_of_one_name_are_refused(brackets):
    frame = brackets / "brackets" / "hall" / "1.png"
    Image.open(frame).save(frame.with_suffix(".jpg"))
    with pytest.raises(UserError, match=r"both become brackets_hall_1\.png; rename one"):
        run(brackets, "--fuse", brackets / "brackets")
    assert not (brackets / "out").exists()


def test_the_present_folder_is_paired_by_whole_names(photos, monkeypatch):
    monkeypatch.chdir(photos / "dark")
    backlit, well_lit = run(photos, "--pairs", ".", "../light")
    assert sorted(backlit) == ["pair0_a", "pair0_b"]
    assert np.array_equal(well_lit["pair0_a"], read_rgb(photos / "light" / "a.png"))


def test_a_bracket_can_be_excluded(brackets, capsys):
    (brackets / "brackets" / "hall").rename(brackets / "brackets" / "2024.05.hall")
    backlit, _ = run(brackets, "--fuse", brackets / "brackets", "--exclude", "2024.05.hall")
    assert sorted(backlit) == ["brackets_yard_0", "brackets_yard_1"]
    assert not capsys.readouterr().err
