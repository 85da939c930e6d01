import hashlib
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pretrained_models.train_default import RECIPES
from tests.commands import ROOT, parse
from utils import checkpoint, download
from utils.errors import UserError

CONTENTS = b"weights " * 1000
COMMAND = """
import pathlib, runpy
from utils import checkpoint
checkpoint.PRETRAINED = pathlib.Path.cwd()
runpy.run_module("utils.download", run_name="__main__")
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty pretrained_models/."""
    monkeypatch.setattr(checkpoint, "PRETRAINED", tmp_path)
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    """A host that has `contents` at any address; it keeps the addresses asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(self.server.length))
            self.end_headers()

        def do_GET(self):
            self.server.asked.append(self.path)
            self.do_HEAD()
            self.wfile.write(self.server.contents)

        def log_message(self, *_):
            pass

    host = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    host.asked, host.status, host.contents, host.length = [], 200, CONTENTS, len(CONTENTS)
    monkeypatch.setattr(download, "RAW", f"http://127.0.0.1:{host.server_port}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    sums = dict.fromkeys(download.SHA256, hashlib.sha256(CONTENTS).hexdigest())
    monkeypatch.setattr(download, "SHA256", sums)
    threading.Thread(target=host.serve_forever, args=(0.01,), daemon=True).start()
    yield host
    host.shutdown()
    host.server_close()


def fetch(name):
    module, args = parse(["-m", "utils.download", name])
    return module.main(args)


def test_every_checkpoint_is_fetched_from_its_authors_once(folder, server, capsys):
    for name in download.SHA256:
        fetch(name)
        assert (folder / f"{name}.pth").read_bytes() == CONTENTS
        assert capsys.readouterr().out == f"fetched {folder / name}.pth\n"
        fetch(name)
        assert capsys.readouterr().out == f"{folder / name}.pth is there already\n"
    rave = "/Atmyre/RAVE/3f0c651b0b4e953e1727e8333b1ca9cd3e57955c/pretrained_models"
    other = "/ZhexinLiang/CLIP-LIT/648cf29f1107c085b5b80ec94ef7c7f15bc15006/pretrained_models"
    own = {f"{rave}/{name}.pth" for name in download.SHA256 if name != "clip_lit_original"}
    assert set(server.asked) == {*own, f"{other}/enhancement_model.pth"}
    assert len(server.asked) == 8


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (dict(contents=b"<html>" * 9, length=54), "gave another file than the card names"),
        (dict(contents=CONTENTS[:-1]), r"could not download rave_paired\.pth"),  # cut short
        (dict(status=404), r"could not download rave_paired\.pth \(HTTP Error 404"),
    ],
    ids=["another file", "cut short", "not found"],
)
def test_anything_but_the_file_is_refused_and_nothing_is_left(folder, server, fault, sentence):
    vars(server).update(fault)
    with pytest.raises(UserError, match=rf"{sentence}.*; fetch http\S+ elsewhere and put it at"):
        fetch("rave_paired")
    assert not list(folder.iterdir())


def test_another_file_of_the_name_is_left_alone(folder, server):
    (folder / "rave_paired.pth").write_bytes(b"mine")
    with pytest.raises(UserError, match="is not the authors' file; move it away"):
        fetch("rave_paired")
    assert (folder / "rave_paired.pth").read_bytes() == b"mine" and not server.asked


def test_offline_it_says_what_to_put_where(folder, server):
    server.shutdown()
    server.server_close()
    with pytest.raises(UserError) as error:
        fetch("rave_paired")
    assert re.fullmatch(
        r"the weights rave_paired\.pth are not on this machine and (\S+) cannot be reached "
        rf"\(.*refused\); fetch \1 elsewhere and put it at {folder}/rave_paired\.pth",
        str(error.value),
    )
    assert not list(folder.iterdir())


def test_the_command_says_one_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "rave_paired"],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: the weights rave_paired.pth are not on this machine and ")
    assert done.stderr.count("\n") == 1 and not done.stdout
    assert not list(tmp_path.iterdir())


def test_checksums_are_the_cards():
    card = (ROOT / "pretrained_models" / "README.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)\.pth` \| `(\w{64})` \|$", card, re.M)) == download.SHA256
    for file in (recipe.file for recipe in RECIPES.values()):
        weights = ROOT / "pretrained_models" / file
        assert len(checkpoint.load_weights(weights)) == 30
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        assert f"SHA-256 of `{file}`: `{found}`, 1,124,489 bytes" in card
        assert weights.stat().st_size == 1_124_489
