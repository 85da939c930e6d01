"""From the data to the table, the whole way, with a tiny CLIP on photographs of scikit-image."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import skimage.data
from PIL import Image

import reproduce
import train
import train_rave
from data import prepare
from models.enhancer import new_enhancer
from tests.commands import ROOT
from utils import checkpoint
from utils.errors import UserError, WorkError

PSNR, SSIM = "standard_psnr", "released_ssim"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The sets: simulated pairs of three photographs, and the photographs as DIV2K."""
    root = tmp_path_factory.mktemp("data")
    photos = root / "DIV2K" / "DIV2K_train_HR"
    photos.mkdir(parents=True)
    for name in ("astronaut", "chelsea", "coffee"):
        Image.fromarray(getattr(skimage.data, name)()).resize((48, 40)).save(photos / f"{name}.png")
    prepare.main(prepare.parse_arguments([str(root / "pairs"), "--simulate", str(photos)]))
    for split in ("train", "test"):
        for kind, folder in (("backlit", "input"), ("well_lit", "gt")):
            shutil.copytree(root / "pairs" / kind, root / "BAID" / split / folder)
    return root


@pytest.fixture
def command(data, small_vit, small_resnet, tmp_path):
    """A reproduction of a few iterations."""
    return [
        *("--data", str(data), "--output", str(tmp_path / "out"), "--budget", "0.0005"),
        *("--clip_weights", str(small_vit), "--identity_weights", str(small_resnet)),
        *("--image_size", "16", "--train_batch_size", "2", "--num_workers", "0"),
        *("--device", "cpu"),
    ]


@pytest.fixture
def calls(forks, monkeypatch, tmp_path):
    """Let the scripts run in forks, which are ready at once; collect their command lines."""
    made = []

    def call(script, arguments):
        made.append([script, *arguments])
        status, said = forks.run(
            script.removesuffix(".py"), list(arguments), environment={"TORCH_HOME": str(tmp_path)}
        )
        assert "Traceback" not in said and status in (0, 1, 2), said
        return status

    monkeypatch.setattr(reproduce, "call", call)
    monkeypatch.setattr(reproduce, "LEAST_WARM_UP", 1)  # results may be white here
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    return made


def run(arguments):
    return reproduce.main(reproduce.parse_arguments(arguments))


def table(tmp_path):
    with (tmp_path / "out" / "table.csv").open() as stream:
        return {row["system"]: row for row in csv.DictReader(stream)}


def test_from_the_data_to_the_table(command, calls, tmp_path):
    checkpoint.save_weights(new_enhancer(1.0), tmp_path / "rave_paired.pth")
    more = ["--weight_decay", "0"]
    systems = [
        "clip_lit_paired",
        "rave_paired",
        "clip_lit_latent_unpaired",
        "rave_unpaired_shifted",
    ]
    command += ["--train_options", " ".join(more), "--systems", *systems]
    assert run(command) == 0
    assert all(line[-2:] == more for line in calls if "-r" in line)
    rows = table(tmp_path)
    assert list(rows) == [*systems, "published_rave_paired"]
    for name, row in rows.items():
        assert 0 < float(row[PSNR]) < 60 and -1 <= float(row[SSIM]) <= 1
        if not name.startswith("published"):
            rave = name.startswith("rave")
            assert row["iterations"] == ("2" if rave else "3")  # of 4,000 and of 6,000
            assert float(row["seconds"]) >= 0
    text = (tmp_path / "out" / "table.md").read_text()
    assert all(f"| {name} | {row[PSNR]} |" in text for name, row in rows.items())
    assert "standard LPIPS" not in text and "LPIPS (alex) needs" in text and "FID needs" in text
    folders = {line[line.index("--exp_name") + 1]: line[4] for line in calls if "-r" in line}
    for name, well_lit in folders.items():
        assert well_lit.endswith("DIV2K_train_HR" if "unpaired" in name else "BAID/train/gt")
    # Once more: nothing is left to do.
    calls.clear()
    assert run(command) == 0
    assert calls == [] and table(tmp_path) == rows


def test_an_ended_reproduction_goes_on(command, calls, tmp_path, monkeypatch):
    command += ["--systems", "rave_paired", "clip_lit_latent_paired"]
    ready = reproduce.call

    def ended(script, arguments):
        if script == "train_rave.py":
            ready(script, [*arguments, "--max_iters", "1"])
            (tmp_path / "out/runs/rave_paired/snapshots_model/final.pth").unlink()
            raise KeyboardInterrupt
        return ready(script, arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(reproduce, "call", ended)
        run(command)
    (tmp_path / "out/scores/clip_lit_latent_paired.json").unlink()
    calls.clear()
    assert run(command) == 0
    assert [line[0] for line in calls] == [
        *("inference.py", "compute_metrics.py"),
        *("train_rave.py", "inference.py", "compute_metrics.py"),
    ]
    assert "--skip_existing" in calls[0] and "--resume" in calls[2]
    assert set(table(tmp_path)) == {"rave_paired", "clip_lit_latent_paired"}


def test_a_system_that_fails_leaves_the_others(command, calls, tmp_path, monkeypatch, capsys):
    ready = reproduce.call
    monkeypatch.setattr(
        reproduce, "call", lambda script, line: 1 if script == "train.py" else ready(script, line)
    )
    assert run([*command, "--systems", "clip_lit_latent_paired", "rave_paired"]) == 1
    assert list(table(tmp_path)) == ["rave_paired"]
    assert (
        "clip_lit_latent_paired failed: train.py ended" in (tmp_path / "out/table.md").read_text()
    )
    monkeypatch.setattr(reproduce, "call", lambda *_: 2)
    with pytest.raises(WorkError, match="nothing could be trained"):
        run([*command, "--output", str(tmp_path / "b"), "--systems", "rave_paired"])


def chosen(arguments):
    return reproduce.choose_systems(reproduce.parse_arguments(arguments))


def test_what_cannot_be_trained_is_left_out_with_a_sentence(command, data, tmp_path):
    systems, (note,) = chosen([*command, "--guidance_encoder", "timm/tf_efficientnet_lite0"])
    assert [system.name for system in systems] == [
        *("clip_lit_latent_paired", "rave_paired", "clip_lit_latent_unpaired", "rave_unpaired")
    ]
    assert "rave_unpaired_shifted left out, since timm/tf_efficientnet_lite0 has no text" in note
    alone = shutil.copytree(data / "BAID", tmp_path / "data" / "BAID").parent
    systems, (note,) = chosen([*command, "--data", str(alone)])
    assert all(system.paired for system in systems) and "there is no" in note
    with pytest.raises(UserError, match="no system can be trained"):
        chosen([*command, "--data", str(alone), "--systems", "rave_unpaired"])


def test_the_set_that_trains(tmp_path):
    with pytest.raises(UserError, match="neither BAID nor LOL-v1"):
        reproduce.choose_set(tmp_path)
    for name, folders in reversed(reproduce.PAIRED_SETS.items()):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="has no folder"):
            reproduce.choose_set(tmp_path)
        for folder in folders:
            (tmp_path / name / folder).mkdir(parents=True)
        assert reproduce.choose_set(tmp_path) == name


@pytest.mark.parametrize("script", [train, train_rave])
def test_the_published_lengths_are_the_scripts_defaults(script):
    args = script.parse_arguments(["-b", "x", "-r", "x", "--exp_name", "x"])
    of_script = [one for one in reproduce.SYSTEMS if one.script == f"{script.__name__}.py"]
    for system in of_script:
        assert system.epochs == args.num_epochs
        assert system.stages == {name: getattr(args, name) for name in system.stages}
        assert ("refinement_iters" in system.stages) == (script is train)
    assert args.train_batch_size == reproduce.BATCH_SIZE


def test_a_budget_scales_every_stage(command):
    args = reproduce.parse_arguments([*command, "--budget", "0.01", "--train_batch_size", "8"])
    of_name = {system.name: system for system in reproduce.SYSTEMS}
    words = reproduce.lengths(of_name["clip_lit_paired"], 368, args)
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
        "--max_iters": "1620",  # 1 % of them, what the warm-up lacks, a restart's
        "--num_reconstruction_iters": "150",
        "--round_iters": "21",
        "--num_clip_pretrained_iters": "80",
        "--refinement_iters": "10",
        **dict.fromkeys(["--thre_train", "--thre_prompt"], "1e9"),
    }
    args.train_options = ["--start_light_map=1"]  # starts with the image, so needs no more
    words = reproduce.lengths(of_name["rave_paired"], 368, args)
    assert words[:4] == ["--max_iters", "920", "--num_reconstruction_iters", "10"]
    assert words[-2:] == ["--thre_train", "1e9"]
    args.budget, args.train_options = 0.5, None
    assert reproduce.lengths(of_name["rave_paired"], 368, args)[:4] == [
        *("--max_iters", "46000", "--num_reconstruction_iters", "500")
    ]
    args.budget = 1.0
    assert reproduce.lengths(of_name["rave_paired"], 368, args) == []


def test_a_refused_command_leaves_its_folder_free(command, calls, tmp_path, capsys):
    command += ["--systems", "rave_paired"]
    with pytest.raises(SystemExit) as end:
        run([*command, "--train_options", "--no_such_flag 3"])
    assert end.value.code == 2 and "--no_such_flag" in capsys.readouterr().err
    assert calls == [] and not (tmp_path / "out").exists()
    for options in (
        "--exp_name other",
        "-b elsewhere",
        "--image_size=32",
        "--resume",
        "--max_it 9",
    ):
        with pytest.raises(UserError, match=r"which reproduce\.py sets itself"):
            run([*command, f"--train_options={options}"])
    with pytest.raises(SystemExit):
        run([*command, "--train_options='"])
    assert "no closing quotation" in capsys.readouterr().err
    (tmp_path / "out" / "runs").mkdir(parents=True)
    with pytest.raises(UserError, match="runs is something else"):
        run(command)
    (tmp_path / "out" / "runs").rmdir()
    (tmp_path / "out" / "log").touch()
    assert run(command) == 0


def test_other_settings_are_refused(command, calls):
    command += ["--systems", "rave_paired"]
    assert run(command) == 0
    with pytest.raises(UserError, match=r"another budget, 0\.0005"):
        run([*command, "--budget", "0.1"])
    with pytest.raises(UserError, match="another train_options, None"):
        run([*command, "--train_options", "--weight_decay 0"])


def test_what_is_missing_is_said_and_made_up_for(command, calls, tmp_path, monkeypatch):
    command += ["--systems", "rave_paired"]
    ready, file = reproduce.call, tmp_path / "out/scores/rave_paired.json"

    def full_disk(script, arguments):
        status = ready(script, arguments)
        if script == "inference.py":
            next((tmp_path / "out/enhanced/rave_paired").iterdir()).unlink()
            return 1
        return status

    with monkeypatch.context() as patched:
        patched.setattr(reproduce, "call", full_disk)
        for _ in range(2):  # it stays so while it is so
            assert run(command) == 1
            said = "rave_paired lacks 1 of the test photographs"
            assert said in (tmp_path / "out/table.md").read_text()
    assert run(command) == 0
    assert not json.loads(file.read_text())["unmatched"]["gt"]
    assert "lacks" not in (tmp_path / "out/table.md").read_text()
    # Weights of a metric that are given later:
    scores = json.loads(file.read_text())
    scores["options"]["fid_weights"] = "other.pth"
    file.write_text(json.dumps(scores))
    calls.clear()
    assert run(command) == 0
    assert [line[0] for line in calls] == ["inference.py", "compute_metrics.py"]
    # The seconds are in last.pt:
    (tmp_path / "out/runs/rave_paired/last.pt").unlink()
    assert run(command) == 0
    assert table(tmp_path)["rave_paired"]["seconds"] == ""


def test_a_damaged_checkpoint_leaves_the_others(command, calls, tmp_path):
    (tmp_path / "clip_lit_paired.pth").write_bytes(b"no weights")
    checkpoint.save_weights(new_enhancer(1.0), tmp_path / "clip_lit_original.pth")
    assert run([*command, "--systems", "rave_paired"]) == 1
    assert list(table(tmp_path)) == ["rave_paired", "published_clip_lit_original"]
    assert "published_clip_lit_paired failed" in (tmp_path / "out/table.md").read_text()


@pytest.mark.long  # tests/test_steps.py has the signals of such calls
def test_a_signal_ends_the_script_in_work_and_the_reproduction(command, tmp_path):
    command += ["--systems", "rave_paired", "--budget", "1"]
    process = subprocess.Popen(
        [sys.executable, "reproduce.py", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )
    run = tmp_path / "out" / "runs" / "rave_paired"
    end = time.monotonic() + 240
    while not (run / "run.json").exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "this command goes on" in said and "Traceback" not in said
    assert (run / "last.pt").exists()
