"""What docs/scale.md says: its commands, its script for Slurm, and the figures that it reckons."""

import math
import os
import re
import shlex
import subprocess
import sys

import pytest

from models.enhancer import UNetEnhancer
from tests.commands import ROOT, help_of, parse
from utils import distributed

TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", TEXT, re.M | re.S)
TORCHRUN = [line for block in BLOCKS for line in block.splitlines() if line.startswith("torchrun")]
SLURM = next(block for block in BLOCKS if block.startswith("#!"))
SCRIPTS = ("train.py", "train_rave.py", "inference.py", "compute_metrics.py")
GRADIENTS = 4 * sum(parameter.numel() for parameter in UNetEnhancer().parameters())  # bytes
IMAGE, BATCH, LINK, LATENCY = 509e9, 8, 10e9 / 8, 0.002  # FLOP, images, bytes/s, seconds


def script_of(line):
    """The options of torchrun, and the script with its arguments."""
    words = shlex.split(line)[1:]
    start = next(number for number, word in enumerate(words) if word.endswith(".py"))
    return words[:start], words[start:]


@pytest.mark.parametrize("block", BLOCKS)
def test_bash_reads_every_block(block):
    subprocess.run(["bash", "-n"], input=block, text=True, check=True)


@pytest.mark.parametrize("line", TORCHRUN)
def test_torchrun_and_the_scripts_take_every_command(line):
    from torch.distributed.run import get_args_parser

    options, script = script_of(line)
    get_args_parser().parse_args([*options, script[0]])
    parse(script)


def test_every_script_is_started():
    assert {script_of(line)[1][0] for line in TORCHRUN} == set(SCRIPTS)


def test_the_first_command_trains(training_folders, tiny_run, tmp_path):
    options, (script, *arguments) = script_of(TORCHRUN[0])
    two = [re.sub(r"(--nproc_per_node)=\d+", r"\1=2", option) for option in options]
    assert two != options
    tiny = [*tiny_run, "--num_reconstruction_iters", "1", "--max_iters", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *two, script, *arguments, *tiny],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 enhancer iterations done") == 1
    assert (tmp_path / "run" / "snapshots_model" / "final.pth").is_file()


def test_slurm_gives_the_script_what_torchrun_would(tmp_path):
    shown = " ".join(f"{name}=${name}" for name in distributed.VARIABLES)
    stubs = {
        "python": f'echo "{shown}"; echo "$@"',
        "scontrol": 'printf "node1\\nnode2\\n"',
        "srun": 'while [[ "$1" == -* ]]; do shift; done; exec "$@"',  # one task of them
    }
    for name, text in stubs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "activate").touch()
    slurm = dict(JOB_NODELIST="node[1-2]", CPUS_PER_TASK="6", NTASKS_PER_NODE="8")
    slurm |= dict(PROCID="11", NTASKS="16", LOCALID="3")
    environment = {f"SLURM_{name}": value for name, value in slurm.items()}
    environment["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", SLURM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    variables, command = done.stdout.splitlines()
    assert variables == (
        "RANK=11 WORLD_SIZE=16 LOCAL_RANK=3 LOCAL_WORLD_SIZE=8 MASTER_ADDR=node1 MASTER_PORT=29500"
    )
    _, args = parse(shlex.split(command))
    folder = tmp_path / args.save_dir / args.exp_name
    assert args.resume and folder.is_dir()  # which a first start with --resume needs


def rows(title):
    """The numbers of each row of the table that begins with a title."""
    lines = TEXT[TEXT.index(f"| {title} |") :].partition("\n\n")[0].splitlines()[2:]
    return [[float(n) for n in re.findall(r"[\d.]+", line.replace(",", ""))] for line in lines]


def test_the_gain_of_processes_follows_the_formula():
    assert f"{GRADIENTS // 4:,} gradients of 4 bytes" in TEXT
    assert f"* {IMAGE / 1e9:.0f}e9 / R" in TEXT and "* 278790 * 4 / B + L" in TEXT
    for processes, images, sent, *figures in rows("K"):
        assert images == math.ceil(BATCH / processes)
        assert sent == pytest.approx(2 * (1 - 1 / processes) * GRADIENTS / 1e6, abs=0.005)
        for rate, milliseconds, ratio in zip(
            (1e13, 1e14), figures[::2], figures[1::2], strict=True
        ):
            alone, seconds = BATCH * IMAGE / rate, images * IMAGE / rate
            if processes > 1:
                seconds += sent * 1e6 / LINK + LATENCY
            assert milliseconds == pytest.approx(1000 * seconds, abs=0.06)
            assert ratio == pytest.approx(alone / seconds, abs=0.006)


def test_photographs_take_the_bytes_that_they_have():
    for photos, own, node, disk in rows("photographs"):
        expected = photos * 3 * 512**2 / 1e9
        assert (own, node, disk) == pytest.approx((expected, 8 * expected, expected), abs=0.05)


def test_what_an_hour_holds():
    for *_, seconds, own, node in rows("12 megapixels"):
        for number, stated in ((1, own), (8, node)):
            assert stated == pytest.approx(number * 3600 / seconds, rel=0.03)


def test_flags_that_sentences_mention_exist():
    from torch.distributed.run import get_args_parser

    known = set(re.findall(r"--\w+", "".join(map(help_of, SCRIPTS))))
    known |= set(get_args_parser()._option_string_actions) | {"--signal"}
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.S)
    assert set(re.findall(r"--\w+", " ".join(re.findall(r"`([^`]+)`", prose)))) <= known


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#\s]+)", TEXT):
        assert link.startswith("https://") or (ROOT / "docs" / link).exists()
