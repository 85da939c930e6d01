"""Photographs kept in memory or on disk, shared by processes."""

import errno
import json
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tqdm import tqdm

from data import photo_store
from data.images import UnreadablePhoto, read_rgb
from data.photo_store import CACHE_MODES, PhotoStore, decode, load_photos
from data.squares import CentreCrop
from utils import distributed, files
from utils.errors import UserError, WorkError

FORK = multiprocessing.get_context("fork")  # children keep what a test has patched


def make_photos(folder: Path, count: int, size: tuple[int, int] = (40, 30)) -> list[Path]:
    """Save photographs of coarse noise."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(count)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
    return paths


def names(folder: Path) -> list[str]:
    """What the folder of a cache holds, the lock aside."""
    return sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """How often each photograph is read."""
    counts = Counter()

    def counted(path: Path) -> np.ndarray:
        counts[path] += 1
        return read_rgb(path)

    monkeypatch.setattr(photo_store, "read_rgb", counted)
    return counts


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user whose cache folder for photographs is this one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "rave" / "photos"


def test_decode_is_pillows_lanczos(tmp_path: Path) -> None:
    (path,) = make_photos(tmp_path, 1)
    expected = Image.open(path).resize((16, 16), Image.Resampling.LANCZOS)
    assert np.array_equal(decode(path, 16), np.asarray(expected).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_all_sizes_and_modes_agree_and_name_a_damaged_file_once(tmp_path, capsys, mode, reads):
    paths = make_photos(tmp_path, 6)
    paths[1].write_bytes(paths[1].read_bytes()[:200])
    paths[3].unlink()
    paths[3].symlink_to("nothing")
    paths[5].write_bytes(b"")
    sizes = [16, CentreCrop(24), 16]
    stores = load_photos(paths, sizes, mode)
    assert reads == Counter(paths)
    told = capsys.readouterr().err
    for store, size in zip(stores, sizes, strict=True):
        assert len(store) == 3
        assert store.size == size
        assert store.paths == [paths[0], paths[2], paths[4]]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            items = [store[i] for i in range(3)]
        for item, path in zip(items, store.paths, strict=True):
            assert item.dtype == torch.uint8
            assert np.array_equal(item.numpy(), decode(path, size))
    assert [told.count(f"{paths[row]}") for row in (1, 3, 5)] == [1, 1, 1]
    assert reads[paths[1]] == 1


@pytest.mark.parametrize("mode", ["memory", "disk"])
def test_nothing_is_read_after_the_store_is_made(tmp_path, mode, reads):
    paths = make_photos(tmp_path, 3)
    store = PhotoStore(paths, 16, mode)
    assert [store[i].shape for i in (0, 1, 2, 0)] == [(3, 16, 16)] * 4
    assert reads == Counter(paths)


def test_items_can_be_changed_without_changing_the_cache(tmp_path: Path) -> None:
    store = PhotoStore(make_photos(tmp_path, 1), 16, "disk")
    expected = store[0].clone()
    store[0].zero_()
    assert torch.equal(store[0], expected)


def test_disk_cache_is_found_again_until_a_photo_changes(tmp_path, reads, capsys, home):
    paths = make_photos(tmp_path, 3)
    paths[0].write_bytes(b"not a photo")
    PhotoStore(paths, 16, "disk")
    assert names(home) == [".json", ".npy"]
    reads.clear()
    capsys.readouterr()
    again = PhotoStore([Path(os.path.relpath(path)) for path in paths], 16, "disk")
    assert not reads
    assert [path.resolve() for path in again.paths] == paths[1:]
    assert str(paths[0]) in capsys.readouterr().err  # each run says it
    make_photos(tmp_path, 1, size=(20, 20))  # overwrites the damaged one
    assert PhotoStore(paths, 16, "disk").paths == paths
    assert reads == Counter(paths)
    reads.clear()
    load_photos(paths, [16, 24], "disk")  # one of them is there
    assert reads == Counter(paths)
    assert names(home) == [".json"] * 3 + [".npy"] * 3


def test_disk_cache_may_lie_in_a_given_folder(tmp_path: Path, home: Path) -> None:
    PhotoStore(make_photos(tmp_path, 2), 16, "disk", tmp_path / "cache")
    assert names(tmp_path / "cache") == [".json", ".npy"]
    assert not home.exists()


def test_photos_changed_in_place_or_made_readable_are_read_again(tmp_path, monkeypatch, reads):
    paths = make_photos(tmp_path, 2)

    def refused(path: Path) -> np.ndarray:
        if path == paths[0]:
            raise UnreadablePhoto(f"{path} may not be read")
        return read_rgb(path)

    with monkeypatch.context() as patched:  # a superuser may read all files, so chmod won't do
        patched.setattr(os, "access", lambda path, _: path != str(paths[0]))
        patched.setattr(photo_store, "read_rgb", refused)
        assert PhotoStore(paths, 16, "disk").paths == paths[1:]
    assert PhotoStore(paths, 16, "disk").paths == paths
    assert reads == Counter(paths)
    os.utime(paths[1], (1, 1))
    PhotoStore(paths, 16, "disk")
    assert reads == Counter(paths * 2)


DAMAGES = {
    "short": lambda pixels, notes: pixels.write_bytes(pixels.read_bytes()[:-1]),
    "long": lambda pixels, notes: pixels.write_bytes(pixels.read_bytes() + b"\0"),
    "empty": lambda pixels, notes: pixels.write_bytes(b""),
    "header": lambda pixels, notes: pixels.write_bytes(b"?" * pixels.stat().st_size),
    "shape": lambda pixels, notes: np.save(pixels, np.zeros((3, 3, 16, 8), np.uint8)),
    "type": lambda pixels, notes: np.save(pixels, np.zeros((3, 3, 16, 16), np.float32)),
    "cut notes": lambda pixels, notes: notes.write_bytes(b'{"1": "cut'),
    "odd notes": lambda pixels, notes: notes.write_bytes(b'["0"]'),
    "no notes": lambda pixels, notes: notes.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_built_anew(tmp_path, capsys, reads, home, damage):
    paths = make_photos(tmp_path, 3)
    PhotoStore(paths, 16, "disk")
    (pixels,), (notes,) = home.glob("*.npy"), home.glob("*.json")
    DAMAGES[damage](pixels, notes)
    for _ in range(2):
        store = PhotoStore(paths, 16, "disk")
        assert all(np.array_equal(store[i], decode(paths[i], 16)) for i in range(3))
    assert sum(reads.values()) == 2 * 3 + 2 * 3  # built twice, and compared above
    assert capsys.readouterr().err.count("is damaged") == 1


def test_an_interrupted_cache_leaves_nothing_and_stops_reading(tmp_path, monkeypatch, home):
    paths = make_photos(tmp_path, 200)
    read = []

    def interrupted(path: Path) -> np.ndarray:
        read.append(path)
        if path == paths[2]:
            raise KeyboardInterrupt
        time.sleep(0.01)
        return read_rgb(path)

    with monkeypatch.context() as patched:
        patched.setattr(photo_store, "read_rgb", interrupted)
        patched.setattr(os, "cpu_count", lambda: 2)
        with pytest.raises(KeyboardInterrupt):
            PhotoStore(paths, 16, "disk")
    assert len(read) < 100
    assert names(home) == []
    assert len(PhotoStore(paths[:3], 16, "disk")) == 3


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch, reads, home):
    """Under a limit on the size of files, where writing fails as it does on a full disk."""
    paths = make_photos(tmp_path, 3)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(photo_store, "tqdm", lambda *a, **k: tqdm(*a, **k | {"disable": False}))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, old[1]))
    try:
        with pytest.raises(WorkError, match=r"cannot write .*choose --cache memory"):
            load_photos(paths * 100, [16, 64], "disk")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(home) == []
    assert sum(reads.values()) < 200  # the rest is not read
    assert len(load_photos(paths, [16, 64], "disk")[1]) == 3


def test_a_folder_that_cannot_be_written_to_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write to .*choose --cache memory") as error:
        PhotoStore(make_photos(tmp_path, 1), 16, "disk", tmp_path / "file")
    assert not isinstance(error.value, WorkError)


def test_of_processes_at_once_one_fills_the_cache(tmp_path, monkeypatch):
    paths = make_photos(tmp_path, 6)

    def slow(path: Path) -> np.ndarray:
        with (tmp_path / "reads.txt").open("a") as log:
            log.write(f"{path.name}\n")
        time.sleep(0.05)
        return read_rgb(path)

    monkeypatch.setattr(photo_store, "read_rgb", slow)
    orders = ([16, 24], [24, 16], [16, 24])
    processes = [FORK.Process(target=load_photos, args=(paths, sizes, "disk")) for sizes in orders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(240)
        assert process.exitcode == 0
    read = (tmp_path / "reads.txt").read_text().split()
    assert sorted(read) == [path.name for path in paths]


def fill_as_one_of_two(number: int, hosts: list[str], port: int, paths: list, folder: str) -> None:
    """Load photographs as the only process on its machine, one of a run's two machines."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": str(port)}
    socket.gethostname = lambda: hosts[number]
    wait = distributed.wait_for_all
    distributed.wait_for_all = lambda: (time.sleep(0.3), wait())  # so that both runs are at locks
    distributed.join(torch.device("cpu"))
    assert len(load_photos(paths, [16], "disk", folder.format(hosts[number]))[0]) == len(paths)
    distributed.leave()


@pytest.mark.parametrize("folder", ["shared", "of_{}"])
def test_of_runs_on_two_machines_one_fills_the_caches(tmp_path, monkeypatch, folder):
    paths = make_photos(tmp_path, 4)

    def slow(path: Path) -> np.ndarray:
        with (tmp_path / "reads.txt").open("a") as log:
            log.write(f"{path.name}\n")
        time.sleep(0.2)
        return read_rgb(path)

    monkeypatch.setattr(photo_store, "read_rgb", slow)
    processes = []
    for hosts in (["a", "b"], ["b", "a"]):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        for number in range(2):
            given = (number, hosts, port, paths, str(tmp_path / folder))
            processes.append(FORK.Process(target=fill_as_one_of_two, args=given))
            processes[-1].start()
    for process in processes:
        process.join(240)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * 4
    read = (tmp_path / "reads.txt").read_text().split()
    assert Counter(read) == {path.name: 2 for path in paths}  # each machine of the first run


def test_a_killed_process_releases_the_cache_and_its_leftovers_go(tmp_path, monkeypatch, home):
    paths = make_photos(tmp_path, 3)

    def stuck(path: Path) -> np.ndarray:
        if path == paths[2]:
            (tmp_path / "stuck").touch()
            time.sleep(600)
        return read_rgb(path)

    with monkeypatch.context() as patched:
        patched.setattr(photo_store, "read_rgb", stuck)
        process = FORK.Process(target=load_photos, args=(paths, [16, 24], "disk"))
        process.start()
    deadline = time.monotonic() + 60
    while not (tmp_path / "stuck").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    assert any(".tmp" in path.name for path in home.iterdir())
    assert len(PhotoStore(paths, 16, "disk")) == 3
    assert names(home) == [".json", ".npy"]


@pytest.mark.parametrize("missing", [True, False])
def test_without_locks_it_goes_on_with_a_note(tmp_path, monkeypatch, capsys, missing):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing:
        monkeypatch.setattr(files, "fcntl", None)
    else:
        monkeypatch.setattr(files.fcntl, "lockf", refuse)
    store = PhotoStore(make_photos(tmp_path, 2), 16, "disk")
    assert len(store) == 2
    told = capsys.readouterr().err
    assert "without a lock" in told
    assert ("none" if missing else "No locks available") in told


def test_other_processes_get_the_file_and_not_its_pixels(tmp_path: Path) -> None:
    store = PhotoStore(make_photos(tmp_path, 3), 64, "disk")
    sent = pickle.dumps(store)
    assert len(sent) < store[0].numel()
    assert torch.equal(pickle.loads(sent)[2], store[2])


@pytest.mark.parametrize("mode", CACHE_MODES)
def test_forked_processes_share_the_store(tmp_path: Path, mode: str) -> None:
    store = PhotoStore(make_photos(tmp_path, 3), 16, mode)
    with FORK.Pool(1) as pool:
        sums = pool.map(sum_of, [(store, index) for index in range(3)])
    assert sums == [int(store[index].sum()) for index in range(3)]


def sum_of(item: tuple[PhotoStore, int]) -> int:
    store, index = item
    return int(store[index].sum())


def test_nothing_readable_is_a_users_error(tmp_path: Path) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        path.write_bytes(b"broken")
    for mode in CACHE_MODES:
        with pytest.raises(UserError, match="none of the 2 files"):
            load_photos(paths, [16, 24], mode)
    with pytest.raises(UserError, match="no photographs"):
        PhotoStore([], 16)
    with pytest.raises(UserError, match="unknown cache"):
        PhotoStore(paths, 16, "ram")


def test_left_out_files_are_remembered_by_row(tmp_path: Path, home: Path) -> None:
    paths = make_photos(tmp_path, 3)
    paths[1].write_bytes(b"broken")
    PhotoStore(paths, 16, "disk")
    (notes,) = home.glob("*.json")
    assert list(json.loads(notes.read_text())) == ["1"]


@pytest.mark.parametrize(("free", "chosen"), [(4 * 768, "memory"), (4 * 768 - 1, "disk")])
def test_photographs_stay_in_memory_while_they_fill_a_quarter_of_it(
    free, chosen, monkeypatch, capsys
):
    monkeypatch.setattr(photo_store, "free_memory", lambda: free)
    folders = [
        ([Path("a"), Path("b")], [8]),
        ([Path("c")], [8, CentreCrop(8)]),
    ]  # of 192 bytes each
    assert photo_store.choose_cache("auto", folders) == chosen
    assert f"are kept {'in' if chosen == 'memory' else 'on'} {chosen}" in capsys.readouterr().out
    assert photo_store.choose_cache("none", folders) == "none"
