import re
import sys
from types import SimpleNamespace

import pytest

from tests.commands import ROOT
from utils.errors import lacks_memory, tell, warn

ROOMS = ("data", "evaluation", "models", "training", "utils", "pretrained_models")


@pytest.mark.parametrize(
    ("text", "lacking"),
    [
        ("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory", True),
        ("not enough memory: you tried to allocate 8 bytes", True),
        ("CUDA out of memory. Tried to allocate 2 GiB", True),
        ("could not create a primitive", True),
        ("std::bad_alloc", True),
        ("can't start new thread", True),
        ("CUDA error: an illegal memory access was encountered", False),
    ],
)
def test_what_a_lack_of_memory_is(text, lacking):
    assert lacks_memory(RuntimeError(text)) is lacking
    assert not lacks_memory(ValueError(text))


def test_everything_told_is_escaped(capsys):
    for say in (tell, warn):
        say("photo\x1b[2J\n\x07.jpg")
    printed = capsys.readouterr()
    assert printed.out == printed.err == "photo\\x1b[2J\\n\\x07.jpg\n"


@pytest.mark.parametrize(("say", "stream"), [(tell, "stdout"), (warn, "stderr")])
def test_a_line_is_written_in_one_piece(say, stream, monkeypatch):
    pieces = []
    unbuffered = SimpleNamespace(write=pieces.append, flush=lambda: None)
    monkeypatch.setattr(sys, stream, unbuffered)
    say("photo.jpg is damaged")
    assert [piece for piece in pieces if piece] == ["photo.jpg is damaged\n"]


def test_nothing_is_told_in_another_way():
    sources = [*ROOT.glob("*.py"), *(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))]
    assert len(sources) > 40
    telling = re.compile(r"(?<![\w.])print\(|\.write\(.*std(err|out)|std(err|out)\.write\(")
    told = {path.name for path in sources if telling.search(path.read_text(encoding="utf-8"))}
    assert told == {"errors.py", "script.py"}
