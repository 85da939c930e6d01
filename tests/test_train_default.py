"""The recipes of the shipped models: its calls, and that it goes on and mixes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import train_rave
from benchmarks import cross_validation, quality
from data.images import read_rgb
from data.listing import list_photos
from models import load_enhancer
from models.enhancer import new_enhancer
from pretrained_models import train_default
from utils import checkpoint
from utils.errors import UserError, WorkError
from utils.metrics import fidelity

SCENES = ("1", "2", "3")
KINDS = ("psnr", "ssim")


@pytest.fixture
def photos(tmp_path):
    """The sets, with three scenes."""
    folders = [f"sice_backlit/{kind}" for kind in ("input", "ref_frame", "gt")]
    rng = np.random.default_rng(0)
    nights = ["lol_eval15/input", "lol_eval15/gt"]
    sets = ("low_light", "kodak24", "wallpapers", "well_lit_bsds")
    for folder in (*folders, *sets, *nights):
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
        assert processes == 3 and script == "train_rave.py"
        made.append([script, *words])
        args = train_rave.parse_arguments(words)
        assert args.paired_guidance and args.guidance_grid == 7 and args.identity_scale == 0.1
        run = f"{words[words.index('--save_dir') + 1]}/{words[words.index('--exp_name') + 1]}"
        checkpoint.save_weights(new_enhancer(float(len(made))), f"{run}/snapshots_model/final.pth")
        return 0

    monkeypatch.setattr(train_default, "call", call)
    return made


def run(photos, work, *held_out):
    words = [str(photos), str(work), "--held_out", *(held_out or ("2",)), "--processes", "3"]
    train_default.main(train_default.parse_arguments(words))


def test_photographs_are_prepared_and_trained_on(photos, calls, tmp_path):
    work = tmp_path / "new" / "work"
    run(photos, work)
    ((_, *line),) = calls
    assert "--resume" not in line
    backlit, well_lit = (line[line.index(flag) + 1] for flag in ("-b", "-r"))
    # Two scenes, whole and in five crops, with two partners; two simulations of two photographs:
    pairs = 2 * (1 + 5) * 2 + 2 * 2
    assert len(list_photos(well_lit)) == pairs and len(list_photos(backlit)) == pairs + 1
    assert not [path for path in list_photos(backlit) if "pair0_2" in path]
    weights = work / checkpoint.DEFAULT_WEIGHTS
    assert checkpoint.load_weights(weights)["cond_add1.bias"].item() == 1  # the first call's


def test_the_free_model_sees_none_of_the_scenes(photos, calls, tmp_path, monkeypatch):
    prepared = []
    prepare = train_default.prepare.main
    monkeypatch.setattr(
        train_default.prepare, "main", lambda args: prepared.append(args) or prepare(args)
    )
    (tmp_path / "photos" / "sice_backlit").rename(tmp_path / "elsewhere")
    (tmp_path / "photos" / "well_lit_bsds").rename(tmp_path / "bsds")
    words = [str(photos), str(tmp_path / "work"), "--model", "rave_free", "--processes", "3"]
    train_default.main(train_default.parse_arguments(words))
    ((_, *line),) = calls
    backlit, well_lit = (line[line.index(flag) + 1] for flag in ("-b", "-r"))
    assert len(list_photos(backlit)) == len(list_photos(well_lit)) == 2 * 6
    assert line[line.index("--max_iters") + 1] == "1050"
    assert [args.darkest for args in prepared] == [0.001]
    assert (tmp_path / "work" / "rave_free.pth").is_file()
    assert "--unet_pretrain_dir" not in line
    with pytest.raises(UserError, match="learns from no scene"):
        train_default.main(train_default.parse_arguments([*words, "--held_out", "1"]))


def test_the_fused_model_goes_on_from_the_free_one(photos, calls, tmp_path, monkeypatch):
    words = [str(photos), str(tmp_path / "work"), "--model", "rave_fused", "--processes", "3"]
    train_default.main(train_default.parse_arguments([*words, "--held_out", "2"]))
    ((_, *line),) = calls
    backlit, well_lit = (line[line.index(flag) + 1] for flag in ("-b", "-r"))
    partners = list_photos(well_lit)
    # Two scenes, whole and in five crops; two simulations of three photographs:
    assert len(partners) == 2 * (1 + 5) + 2 * 3 and len(list_photos(backlit)) == len(partners) + 1
    fused = {name: read_rgb(photos / "sice_backlit" / "gt" / f"{name}.png") for name in "13"}
    whole = {
        name: read_rgb(path)
        for name in "13"
        for path in partners
        if path.endswith(f"pair0_{name}.png")
    }
    assert all(np.array_equal(whole[name], fused[name]) for name in "13")
    start = line[line.index("--unet_pretrain_dir") + 1]
    assert Path(start) == checkpoint.PRETRAINED / "rave_free.pth"
    assert line[line.index("--max_iters") + 1] == "220"
    assert (tmp_path / "work" / "rave_fused.pth").is_file()
    monkeypatch.setattr(train_default, "PRETRAINED", tmp_path)
    words[1] = str(tmp_path / "other")
    with pytest.raises(UserError, match=r"no checkpoint at .*rave_free"):
        train_default.main(train_default.parse_arguments(words))
    assert not (tmp_path / "other").exists()


def test_what_is_done_is_kept(photos, calls, tmp_path):
    work = tmp_path / "work"
    run(photos, work)
    run(photos, work)
    assert len(calls) == 1
    torch.save({}, work / "run" / "last.pt")
    (work / "run" / "snapshots_model" / "final.pth").unlink()
    run(photos, work)
    assert len(calls) == 2 and "--resume" in calls[-1]
    weights = work / checkpoint.DEFAULT_WEIGHTS
    assert checkpoint.load_weights(weights)["cond_add1.bias"].item() == 2


def test_a_training_that_fails_is_told(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(train_default, "call", lambda *_: 1)
    with pytest.raises(WorkError, match="status 1 and without final weights; this command goes on"):
        run(photos, tmp_path / "work")
    assert not (tmp_path / "work" / "rave_default.pth").exists()


def test_nothing_is_mixed_and_nobodys_work_is_lost(photos, calls, tmp_path, monkeypatch):
    run(photos, tmp_path / "work")
    with pytest.raises(UserError, match="another held_out"):
        run(photos, tmp_path / "work", "3")
    monkeypatch.setattr(train_default, "TRAINING", train_default.TRAINING[:-1])
    with pytest.raises(UserError, match="another training"):
        run(photos, tmp_path / "work")
    other = replace(train_default.DEFAULT, variants=7)
    monkeypatch.setitem(train_default.RECIPES, "rave_default", other)
    with pytest.raises(UserError, match="another model"):
        run(photos, tmp_path / "work")
    for name in ("run", "photos.part"):
        (tmp_path / f"mine_{name}" / name).mkdir(parents=True)
        with pytest.raises(UserError, match=f"{name} is something else"):
            run(photos, tmp_path / f"mine_{name}")
    assert len(calls) == 1


def test_a_refused_command_leaves_its_folder_free(photos, calls, tmp_path):
    with pytest.raises(UserError, match="no such scene"):
        run(photos, tmp_path / "work", "2", "nosuch")
    with pytest.raises(UserError, match="nowhere; the card says"):
        run(tmp_path / "nowhere", tmp_path / "work")
    (photos / "kodak24").rename(tmp_path / "kodak24")
    with pytest.raises(UserError, match="kodak24"):
        run(photos, tmp_path / "work")
    (tmp_path / "kodak24").rename(photos / "kodak24")
    run(photos, tmp_path / "work")
    assert len(calls) == 1


def test_an_unreadable_photograph_stops_the_recipe(photos, calls, tmp_path):
    (photos / "kodak24" / "b.png").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(WorkError, match="is not whole"):
            run(photos, tmp_path / "work")
    (photos / "kodak24" / "b.png").unlink()
    run(photos, tmp_path / "work")
    assert len(calls) == 1


def cross_validate(monkeypatch, *words):
    words = [*words, "--processes", "3"]
    monkeypatch.setattr("sys.argv", ["cross_validation", *map(str, words)])
    cross_validation.main(cross_validation.parse_arguments())


def test_folds_are_scored_on_what_they_have_not_seen(photos, calls, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="nosuch"):
        cross_validate(
            monkeypatch, photos, tmp_path / "other", "--folds", "2", "--weights", "nosuch"
        )
    assert not (tmp_path / "other").exists()
    scored = []
    ways = []
    monkeypatch.setattr(cross_validation, "network", lambda path, **how: ways.append(how) or path)

    def scores_of(enhance, scenes):
        scored.append((enhance, [scene.photo.tobytes() for scene in scenes]))
        return np.full((len(scenes), 6), float(len(scenes)))  # as the fold is large

    monkeypatch.setattr(cross_validation, "scores_of", scores_of)
    cross_validate(monkeypatch, photos, tmp_path / "work", "--folds", "2")
    inputs = {
        name: quality.read_square(photos / "sice_backlit" / "input" / f"{name}.png").tobytes()
        for name in SCENES
    }
    assert ways == [{"auto_exposure": False}] * 2
    folds = {"fold0": ("1", "3"), "fold1": ("2",)}
    assert scored[:2] == [
        (str(tmp_path / "work" / fold / "rave_default.pth"), [inputs[name] for name in names])
        for fold, names in folds.items()
    ]
    for fold, held_out in folds.items():
        seen = {
            path.rpartition("/")[2]
            for path in list_photos(tmp_path / "work" / fold / "photos" / "well_lit")
        }
        for name in SCENES:
            assert (f"pair0_{name}.png" in seen) == (name not in held_out)
    lines = capsys.readouterr().out.splitlines()
    *told, head, _, gamma, one, other, all_folds = lines
    titles = "frame dB | frame SSIM | fused dB | fused SSIM | highlights | noise"
    assert head == f"| | {titles} |"
    spread = "1.67 (0.50) | 1.667 (0.500) | " * 2 + "1.67 (0.50) | 1.67 (0.50) |"
    assert [gamma, all_folds] == [f"| {name} | {spread}" for name in ("auto gamma", "the recipe")]
    cells = "2.00 | 2.000 | 2.00 | 2.000 | 2.00 | 2.00 |"
    folds = {"without 1 3": cells, "without 2": cells.replace("2", "1")}
    assert [one, other] == [f"| the recipe {name} | {row}" for name, row in folds.items()]
    assert [line for line in told if line[0] == "|"] == [
        f"| {name} | {row}" for name, row in folds.items()
    ]
    cross_validate(monkeypatch, photos, tmp_path / "work", "--folds", "2", "--auto_exposure")
    assert ways[2:] == [{"auto_exposure": True}] * 2 and len(calls) == 2
    assert "| the recipe, auto exposure | 1.67 (0.50) |" in capsys.readouterr().out
    cross_validate(monkeypatch, photos, tmp_path / "fused", "--folds", "2", "--model", "rave_fused")
    assert [line[line.index("--max_iters") + 1] for line in calls] == ["450"] * 2 + ["220"] * 2
    assert scored[-3][0] == str(tmp_path / "fused" / "fold1" / "rave_fused.pth")
    with pytest.raises(UserError, match="another model"):
        cross_validate(monkeypatch, photos, tmp_path / "fused", "--folds", "2")
    with pytest.raises(UserError, match="learns from none of the scenes"):
        cross_validate(monkeypatch, photos, tmp_path / "other", "--model", "rave_free")
    with pytest.raises(UserError, match="2 to 3"):
        cross_validate(monkeypatch, photos, tmp_path / "other", "--folds", "4")
    with pytest.raises(UserError, match="another folds"):
        cross_validate(monkeypatch, photos, tmp_path / "work", "--folds", "3")


def squares(photos, name):
    """The photograph, its frame and its fused reference."""
    return [
        quality.read_square(photos / "sice_backlit" / folder / f"{name}.png")
        for folder in ("input", "ref_frame", "gt")
    ]


def test_scores_stand_in_the_order_of_the_columns(photos):
    scenes = quality.scenes_of(photos / "sice_backlit", train_default.REFERENCES, ["2"])
    photo, *references = squares(photos, "2")
    result = photo // 2
    expected = [fidelity(each, result, "standard")[kind] for each in references for kind in KINDS]
    expected += [quality.highlight_contrast(photo, result), quality.dark_noise(photo, result)]
    assert cross_validation.scores_of(lambda photo: photo // 2, scenes).tolist() == [expected]


def print_quality(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["quality", *map(str, words)])
    quality.main(quality.parse_arguments())
    lines = capsys.readouterr().out.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_the_table_has_each_set_and_compares_the_references(photos, monkeypatch, capsys):
    head, _, *rows = print_quality(monkeypatch, capsys, photos, "--held_out", "1", "3", "1")
    assert head[1:] == ["SICE frame (2)", "SICE fused (2)", "LOL eval15", "highlights", "noise"]
    assert [row[0] for row in rows[:3]] == ["untouched", "auto gamma", "CLAHE"]
    assert all(len(row) == len(head) for row in rows)
    assert rows[0][-2:] == ["1.00", "1.00"]
    scenes = [squares(photos, name) for name in ("1", "3")]
    between = quality.fidelity_cell([fidelity(a, b, "standard") for _, a, b in scenes])
    noises = [np.mean([quality.dark_noise(scene[0], scene[i]) for scene in scenes]) for i in (1, 2)]
    frame, fused = rows[-2:]
    assert frame[:4] == ["SICE frame (2): the reference", "", between, ""]
    assert fused[:4] == ["SICE fused (2): the reference", between, "", ""]
    assert [frame[-1], fused[-1]] == [f"{noise:.2f}" for noise in noises]
    with pytest.raises(UserError, match="lacks scene nosuch"):
        print_quality(monkeypatch, capsys, photos, "--held_out", "nosuch")


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_networks_are_scored_at_each_strength_and_exposed(photos, monkeypatch, capsys):
    night = photos / "lol_eval15" / "input" / "a.png"
    Image.fromarray(read_rgb(night) // 4).save(night)
    words = [photos, "rave_free", "--native", "--strengths", "1", "0.5"]
    _, _, *rows = print_quality(monkeypatch, capsys, *words)
    _, _, *exposed = print_quality(monkeypatch, capsys, *words, "--auto_exposure")
    assert exposed[:3] == rows[:3]
    names = ["rave_free", "rave_free, strength 0.5"]
    dark, light = (read_rgb(photos / "lol_eval15" / kind / "a.png") for kind in ("input", "gt"))
    enhance = load_enhancer("rave_free", "cpu").enhance
    for auto, found in ((False, rows), (True, exposed)):
        assert [row[0] for row in found[3:]] == [f"{n}{', auto exposure' * auto}" for n in names]
        for row, strength in zip(found[3:], (1.0, 0.5), strict=True):
            result = enhance(dark, strength, auto)
            assert row[1] == quality.fidelity_cell([fidelity(light, result, "standard")])
    assert rows[4][1] != exposed[4][1]


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")
def test_photographs_are_scored_at_their_own_size_if_asked(photos, monkeypatch, capsys):
    head, _, *rows = print_quality(monkeypatch, capsys, photos, "--native")
    assert head[1:] == ["LOL-v1 eval15", "published, dB"] and len(rows) == 3
    dark, light = (read_rgb(photos / "lol_eval15" / kind / "a.png") for kind in ("input", "gt"))
    assert rows[0][1] == quality.fidelity_cell([fidelity(light, dark, "standard")])


def test_the_card_says_how_it_is_trained():
    card = " ".join((Path(train_default.__file__).parent / "README.md").read_text().split())
    paths = ["-b", "a", "-r", "b", "--exp_name", "c"]
    args = train_rave.parse_arguments([*paths, *train_default.TRAINING])
    size = f"{args.image_size}x{args.image_size}"
    batches = f"iterations in batches of {args.train_batch_size} at {size}"
    for recipe in train_default.RECIPES.values():
        assert f"{recipe.iterations:,} {batches}" in card
    assert train_default.FREE.variants == 6 and "six simulations of each photograph" in card
    assert train_default.FREE.darkest == 0.001 and "down to a thousandth of the light" in card
    fused = train_default.FUSED
    assert fused.variants == 2 and fused.darkest == train_default.FREE.darkest
    assert "two simulations of each photograph, with nights as `rave_free` has them" in card
    assert f"pooled in {args.guidance_grid}x{args.guidance_grid} cells" in card
    assert args.identity_scale == 0.1 and "a tenth of the published weight" in card


def test_the_shipped_file_is_of_the_first_fold():
    card = (Path(train_default.__file__).parent / "README.md").read_text()
    listed = card.partition("(https://github.com/csjcai/SICE), scenes ")[2].partition(" |")[0]
    names = sorted(listed.split(", "))
    assert len(names) == 30 and tuple(names[::6]) == train_default.HELD_OUT


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
