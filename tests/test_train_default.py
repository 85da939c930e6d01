"""The recipe of the default model: its calls, and that it goes on and mixes nothing."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import cross_validation, quality
from data.listing import list_photos
from models.enhancer import new_enhancer
from pretrained_models import train_default
from utils import checkpoint
from utils.errors import UserError, WorkError

SCENES = ("1", "2", "3")


@pytest.fixture
def photos(tmp_path):
    """The sets, with three scenes."""
    folders = [f"sice_backlit/{kind}" for kind in ("input", "ref_frame", "gt")]
    rng = np.random.default_rng(0)
    for folder in (*folders, "low_light", "kodak24", "well_lit_bsds", "lol_eval15"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        for name in SCENES if folder in folders else ["a"]:
            pixels = rng.integers(30, 220, (20, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / folder / f"{name}.png")
    return tmp_path / "photos"


@pytest.fixture
def calls(monkeypatch):
    """Let training leave weights at once; collect its command lines."""
    made = []

    def call(script, words, processes):
        assert processes == 3
        made.append([script, *words])
        run = f"{words[words.index('--save_dir') + 1]}/{words[words.index('--exp_name') + 1]}"
        checkpoint.save_weights(new_enhancer(float(len(made))), f"{run}/snapshots_model/final.pth")
        return 0

    monkeypatch.setattr(train_default, "call", call)
    return made


def run(photos, work, *held_out):
    words = [str(photos), str(work), "--held_out", *(held_out or ("2",)), "--processes", "3"]
    train_default.main(train_default.parse_arguments(words))


@pytest.fixture
def two_stages(monkeypatch):
    """A recipe of two, of which the first one is the real one."""
    first = train_default.STAGES[0]
    second = train_default.Stage(
        name="second",
        start=("first",),
        references=("frame", "fused", "fused"),
        photos=("--crops", "1"),
        options=("--image_size", "144"),
    )
    monkeypatch.setattr(train_default, "STAGES", (first, second))
    monkeypatch.setattr(train_default, "RESULTS", {"rave_default.pth": ("first", "second")})


def test_stages_are_prepared_and_trained_as_they_say(photos, calls, tmp_path, two_stages):
    work = tmp_path / "new" / "work"
    run(photos, work)
    assert [line[0] for line in calls] == ["train_rave.py"] * 2
    for line, size, pairs in zip(calls, ("112", "144"), (2 * 2 * 3, 2 * 3 * 2), strict=True):
        assert line[line.index("--image_size") + 1] == size
        backlit, well_lit = (line[line.index(flag) + 1] for flag in ("-b", "-r"))
        assert len(list_photos(well_lit)) == pairs + 2 and len(list_photos(backlit)) == pairs + 3
        assert not [path for path in list_photos(backlit) if "pair0_2" in path]
    bias = checkpoint.load_weights(work / "rave_default.pth")["cond_add1.bias"]
    assert bias.item() == 1.5


def test_each_stage_starts_from_the_mean_of_those_it_names(photos, calls, tmp_path):
    run(photos, tmp_path / "work")
    assert len(calls) == len(train_default.STAGES)
    for stage, line in zip(train_default.STAGES, calls, strict=True):
        assert "--resume" not in line and line[line.index("--exp_name") + 1] == stage.name
        assert bool(stage.start) == ("--unet_pretrain_dir" in line)
        if stage.start:
            start = checkpoint.load_weights(line[line.index("--unet_pretrain_dir") + 1])
            numbers = [1 + [s.name for s in train_default.STAGES].index(n) for n in stage.start]
            assert start["cond_add1.bias"].item() == np.mean(numbers)
    for file, bias in (("rave_default.pth", pytest.approx(3.8)), ("rave_bright.pth", 5)):
        assert checkpoint.load_weights(tmp_path / "work" / file)["cond_add1.bias"].item() == bias


def test_what_is_done_is_kept(photos, calls, tmp_path, two_stages):
    run(photos, tmp_path / "work")
    run(photos, tmp_path / "work")
    assert len(calls) == 2
    torch.save({}, tmp_path / "work" / "second" / "last.pt")
    (tmp_path / "work" / "second" / "snapshots_model" / "final.pth").unlink()
    run(photos, tmp_path / "work")
    assert len(calls) == 3 and "--resume" in calls[-1]


def test_a_training_that_fails_is_told(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_default, "call", lambda *_: 1)
    with pytest.raises(WorkError, match="status 1 and without final weights; this command goes on"):
        run(photos, tmp_path / "work")
    assert not (tmp_path / "work" / "rave_default.pth").exists()


def test_nothing_is_mixed_and_nobodys_work_is_lost(
    photos, calls, tmp_path, monkeypatch, two_stages
):
    run(photos, tmp_path / "work")
    with pytest.raises(UserError, match="another held_out"):
        run(photos, tmp_path / "work", "3")
    monkeypatch.setattr(train_default, "STAGES", train_default.STAGES[:1])
    with pytest.raises(UserError, match="another stages"):
        run(photos, tmp_path / "work")
    (tmp_path / "mine" / "first").mkdir(parents=True)
    with pytest.raises(UserError, match="first is something else"):
        run(photos, tmp_path / "mine")
    assert len(calls) == 2


def test_a_refused_command_leaves_its_folder_free(photos, calls, tmp_path):
    with pytest.raises(UserError, match="no such scene"):
        run(photos, tmp_path / "work", "2", "nosuch")
    with pytest.raises(UserError, match="no file or folder"):
        run(tmp_path / "nowhere", tmp_path / "work")
    (photos / "kodak24").rename(tmp_path / "kodak24")
    with pytest.raises(UserError, match="kodak24"):
        run(photos, tmp_path / "work")
    (tmp_path / "kodak24").rename(photos / "kodak24")
    run(photos, tmp_path / "work")
    assert len(calls) == len(train_default.STAGES)


def test_an_unreadable_photograph_stops_the_recipe(photos, calls, tmp_path):
    (photos / "kodak24" / "b.png").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(WorkError, match="is not whole"):
            run(photos, tmp_path / "work")
    (photos / "kodak24" / "b.png").unlink()
    run(photos, tmp_path / "work")
    assert len(calls) == len(train_default.STAGES)


def cross_validate(monkeypatch, *words):
    words = [*words, "--processes", "3", "--weights"]
    monkeypatch.setattr("sys.argv", ["cross_validation", *map(str, words)])
    cross_validation.main(cross_validation.parse_arguments())


def test_folds_are_scored_on_what_they_have_not_seen(photos, calls, tmp_path, monkeypatch, capsys):
    scored = []
    real = cross_validation.scores_of

    def scores_of(enhance, scenes, names):
        scored.append(names)
        return real(enhance, scenes, names)

    monkeypatch.setattr(cross_validation, "scores_of", scores_of)
    cross_validate(monkeypatch, photos, tmp_path / "work", "--folds", "2")
    assert scored == [["1", "3"], ["2"]] * 2
    for fold, kept in (("fold0", "2"), ("fold1", "1")):
        names = {
            path.rpartition("/")[2]
            for path in list_photos(tmp_path / "work" / fold / "first_photos" / "well_lit")
        }
        assert f"pair0_{kept}.png" in names
        assert not any(f"pair0_{name}.png" in names for name in scored[int(fold[-1])])
    rows = capsys.readouterr().out.splitlines()[-2:]
    assert rows[0].startswith("| auto gamma |") and rows[1].startswith("| the recipe |")
    assert all(row.count("(") == 6 and "nan" not in row for row in rows)
    with pytest.raises(UserError, match="2 to 3"):
        cross_validate(monkeypatch, photos, tmp_path / "other", "--folds", "4")
    with pytest.raises(UserError, match="another folds"):
        cross_validate(monkeypatch, photos, tmp_path / "work", "--folds", "3")


def test_a_mean_stands_beside_its_interval():
    figures = [{"psnr": 20.0, "ssim": 0.8}, {"psnr": 10.0, "ssim": 0.6}]
    assert quality.fidelity_cell(figures) == "15.00 [10.0, 20.0] / 0.700"
    assert quality.fidelity_cell(figures[:1]) == "20.00 / 0.800"


def test_closed_forms_of_what_can_go_wrong():
    rng = np.random.default_rng(0)
    photo = rng.integers(10, 120, (40, 60, 3), dtype=np.uint8)
    assert quality.highlight_contrast(photo, photo) == quality.dark_noise(photo, photo) == 1
    assert quality.highlight_contrast(photo, 2 * photo) == pytest.approx(2, rel=1e-4)
    assert quality.dark_noise(photo, 2 * photo) == pytest.approx(1, rel=1e-4)
    sky, paler = photo.copy(), photo.copy()
    sky[:], paler[:] = 200 + photo // 4, 220 + photo // 8  # half the contrast
    assert 0.4 < quality.highlight_contrast(sky, paler) < 0.6
    dark = rng.integers(20, 25, photo.shape, dtype=np.uint8)
    noisy = 4 * dark + rng.integers(0, 40, photo.shape, dtype=np.uint8)
    assert quality.dark_noise(dark, noisy) > 1.5
    for value in (0, 255):
        flat = np.full((9, 9, 3), value, np.uint8)
        assert quality.highlight_contrast(flat, flat) == quality.dark_noise(flat, flat) == 1
