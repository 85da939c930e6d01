"""Time and memory that starting takes on a folder of 200,000 photographs."""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from data import photo_store
from data.listing import list_photos
from data.squares import CentreCrop
from tests.commands import ROOT
from training.encoder_weights import load_encoder

FEW, MANY = 100, 200_000
# Of a processor and of the process's own memory, that MANY may take beyond FEW. They should take 10
# seconds; a busy machine also counts more seconds of a processor.
SECONDS, BYTES = 20, 300e6
START = r"""
import json, sys, time
from pathlib import Path
import compute_metrics, inference, train_rave
from evaluation import setup
from tests.commands import parse

def plan(folder):
    counts = []
    inference.enhance_all = lambda jobs, *_: counts.append(len(jobs))
    names = ["-i", folder, "-o", folder + ".out", "--format", "jpg", "--device", "cpu"]
    _, args = parse(["inference.py", *names, "--skip_existing"])
    inference.main(args)
    return counts[0]

def pair(folder):
    names = ["--gt_images_path", folder, "--enhanced_images_path", folder]
    _, args = parse(["compute_metrics.py", *names, "--csv", folder + "/../a.csv"])
    setup.check_outputs(args, matching := setup.find_pairs(args))
    return len(matching.pairs)

def train(*arguments):
    train_rave.main(train_rave.parse_arguments(arguments))
    listed = json.loads((Path(arguments[-1]) / "run/photographs.json").read_text())
    return len(listed["backlit_images_path"])

imported = time.process_time()
what, *arguments = sys.argv[1:]
count = {"plan": plan, "pair": pair, "train": train}[what](*arguments)
print(count, time.process_time() - imported)
"""


def many_photos(folder: Path, count: int) -> Path:
    """Fill a folder with photographs; file systems allow only so many names for one file."""
    folder.mkdir()
    for k in range(count):
        source = folder.parent / f"{k % 8}.png"
        if not source.exists():
            Image.new("RGB", (24, 20 + k), (k, 9, 30)).save(source)
        os.link(source, folder / f"IMG_{k:06d}.png")
    return folder


def fill_caches(folder: Path, size: int, encoder_weights: Path) -> None:
    """Put what a run would keep of a folder into the caches: black squares, random embeddings."""
    encoder = load_encoder("ViT-B-32", encoder_weights)
    paths, home = list_photos(folder), Path(os.environ["XDG_CACHE_HOME"]) / "rave"
    (home / "photos").mkdir(parents=True, exist_ok=True)
    name = photo_store._fingerprint(paths)
    for each in (size, CentreCrop(encoder.input_size)):
        file = home / "photos" / f"{name}_{each}.npy"
        photo_store._write_empty(file, photo_store._shape(paths, each))
        file.with_suffix(".json").write_text("{}")
    embeddings = torch.nn.functional.normalize(torch.randn(len(paths), 512), dim=1)
    key = f"embeddings-{name}_{CentreCrop(encoder.input_size)}-{encoder.embedding_name}"
    torch.save(embeddings, home / f"{key}.pt")


def start(what: str, *arguments: str) -> list[float]:
    """Start a script's work; return the number of photographs, seconds of a processor, bytes."""
    command = [sys.executable, "-c", START, what, *arguments]
    seen = []
    with (
        tempfile.TemporaryFile("w+") as told,
        tempfile.TemporaryFile("w+") as warned,
        subprocess.Popen(command, cwd=ROOT, stdout=told, stderr=warned) as process,
    ):
        while process.poll() is None:  # from here: a thread of its own would count, and slow it
            # The process's own memory, without what is only mapped from files:
            status = Path(f"/proc/{process.pid}/status").read_text()
            seen += map(int, re.findall(r"RssAnon:\s+(\d+) kB", status))
            time.sleep(0.005)
        output, errors = (file.seek(0) or file.read() for file in (told, warned))
    assert process.returncode == 0, errors
    return [*map(float, output.splitlines()[-1].split()), 1024 * max(seen)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.long
def test_200_000_photographs_are_planned_paired_and_trained_on_at_once(
    tmp_path, tiny_vit, tiny_resnet, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    figures = {}
    for count in (FEW, MANY):
        folder = many_photos(tmp_path / str(count), count)
        fill_caches(folder, 16, tiny_vit)
        (tmp_path / "a.csv").touch()  # scores of before, which are none of the images
        run = [
            *("-b", str(folder), "-r", str(tmp_path / str(FEW)), "--exp_name", "run"),
            *("--clip_weights", str(tiny_vit), "--identity_weights", str(tiny_resnet)),
            *("--image_size", "16", "--max_iters", "2", "--num_workers", "1", "--cache", "disk"),
            *(
                "--device",
                "cpu",
                "--display_iter",
                "1",
                "--save_dir",
                str(tmp_path / f"{count}.runs"),
            ),
        ]
        for what, arguments in (
            *(("plan", [str(folder)]), ("pair", [str(folder)])),
            *(("train", run), ("resume", ["--resume", *run])),
        ):
            figures[what, count] = start(what.replace("resume", "train"), *arguments)
    for what in ("plan", "pair", "train", "resume"):
        (few, *least), (many, *most) = figures[what, FEW], figures[what, MANY]
        assert (few, many) == (FEW, MANY)
        seconds, more = (large - small for large, small in zip(most, least, strict=True))
        print(f"{what}: {seconds:.1f} s, {more / 1e6:.0f} MB")
        assert seconds < SECONDS and more < BYTES, (what, seconds, more)
