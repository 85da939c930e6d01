"""What an inference run has to do, decided from names and sizes alone."""

import os
import random
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

from data.jobs import Job, plan, share_out, share_work
from data.result_names import name_in_folder
from tests.commands import ROOT
from tests.growth import FEW, MANY, assert_linear

# Bounds for planning NAMES photographs; 10 seconds are meant, a busy machine may take longer.
SECONDS, BYTES, NAMES = 20, 300e6, 200_000
MEASURE = """
import resource, time
from data import jobs
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
imported, started = peak(), time.process_time()
shares, _, _ = jobs.share_work({})
print(sum(map(len, shares)), time.process_time() - started, peak() - imported)
"""


def many_photos(folder: Path, count: int) -> Path:
    """Fill a folder with names; file systems allow only so many for one file."""
    folder.mkdir()
    for k in range(count):
        source, link = (
            folder.parent / f"{k % 8}.bin",
            folder / f"IMG_{k:06d}.{'png' if k % 3 else 'jpg'}",
        )
        if k < 8:
            source.write_bytes(bytes(k))
        os.link(source, link)
    return folder


def work(sources: list[Path], output: Path, kind: str) -> dict:
    inputs = list(map(str, sources))
    return dict(inputs=inputs, output=str(output), kind=kind, skip_existing=True)


# Names


def test_a_result_with_alpha_takes_no_name_of_another() -> None:
    def named(kind: str, *names: str) -> list[tuple[str, str | None]]:
        orders = [names, names[::-1]]
        plans = [dict() for _ in orders]
        for order, results in zip(orders, plans, strict=True):
            jobs, _ = plan(order, *name_in_folder(order, "out", kind))
            for job in jobs:
                results[job.source] = (job.target, job.png)
        assert plans[0] == plans[1]
        return [plans[0][photo] for photo in names]

    assert named("png", "a.bmp") == [("out/a.png", None)]
    assert named("jpg", "a.bmp", "sub/b.tif") == [
        ("out/a.jpg", "out/a.png"),
        ("out/sub/b.jpg", "out/sub/b.png"),
    ]
    assert named("same", "a.bmp", "A.png", "b.jpg", "c.tif", "d.gif") == [
        ("out/a.bmp", "out/a.bmp.png"),  # a.png is A.png's
        ("out/A.png", None),
        ("out/b.jpg", "out/b.png"),
        ("out/c.tif", None),
        ("out/d.png", None),
    ]
    assert named("jpg", "a.bmp", "a.png") == [
        ("out/a.bmp.jpg", "out/a.bmp.png"),
        ("out/a.png.jpg", "out/a.png.png"),
    ]


# Parts


def test_the_largest_go_first_where_least_is() -> None:
    jobs = [Job(str(k), "", None, size) for k, size in enumerate((1, 2, 9, 5, 4, 3))]
    # 9; 5; 4 to the second; 3 to the first at 9 : 9; 2 to the second at 12 : 9; 1 there, too
    parts = [[int(job.source) for job in part] for part in share_out(jobs, 2)]
    assert parts == [[2, 5], [0, 1, 3, 4]]
    assert share_out(jobs, 1) == [jobs]
    assert share_out(jobs[:1], 3) == [jobs[:1], [], []]


@pytest.mark.parametrize("seed", range(5))
def test_parts_hold_each_job_once_and_differ_by_one_at_most(seed: int) -> None:
    sizes = random.Random(seed)
    jobs = [Job(str(k), "", None, sizes.randrange(1000)) for k in range(50)]
    parts = share_out(jobs, 7)
    assert sorted(job for part in parts for job in part) == sorted(jobs)
    assert all(part == sorted(part, key=jobs.index) for part in parts)
    loads = [sum(job.size for job in part) for part in parts]
    assert max(loads) - min(loads) <= max(job.size for job in jobs)


# Large folders


@pytest.mark.parametrize(
    ("kind", "folders", "tail"),
    [("png", 1, ""), ("png", 2, "_new"), ("jpg", 1, "_new"), ("jpg", 2, "")],
)
def test_planning_grows_no_faster_than_the_folders(
    kind: str, folders: int, tail: str, tmp_path: Path
) -> None:
    given = {}
    for count in (FEW, MANY):
        (home := tmp_path / str(count)).mkdir()
        sources = [many_photos(home / f"in{k}", count // folders) for k in range(folders)]
        (home / "result").touch()
        for source in sources:
            results = home / "out" / source.name if folders > 1 else home / "out"
            results.mkdir(parents=True)
            for k in range(0, count // folders, 2):
                os.link(home / "result", results / f"IMG_{k:06d}{tail}.{kind}")
        given[count] = work(sources, home / "out", kind) | dict(tail=tail)

    def planned(count: int) -> None:
        shares, skipped, _ = share_work(**given[count])
        assert len(shares[0]) == skipped == count // 2

    assert_linear(planned)
    tracemalloc.start()
    planned(MANY)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / MANY <= BYTES / NAMES


def test_planning_of_many_files_grows_no_faster_than_they(tmp_path: Path) -> None:
    files = sorted(many_photos(tmp_path / "in", MANY).iterdir())

    def planned(count: int) -> None:
        some = files[:count]  # each is looked for on its own
        shares, _, _ = share_work(**work([*some, *some], tmp_path / "out", "jpg"))
        assert len(shares[0]) == count

    assert_linear(planned)


@pytest.mark.long
@pytest.mark.parametrize("folders", [1, 2])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_200_000_photographs_are_planned_at_once(kind: str, folders: int, tmp_path: Path) -> None:
    sources = [many_photos(tmp_path / f"in{k}", NAMES // folders) for k in range(folders)]
    script = MEASURE.format(f"**{work(sources, tmp_path / 'out', kind)}")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    photos, seconds, more = map(float, done.stdout.split())
    assert photos == NAMES
    assert seconds < SECONDS and more < BYTES, (seconds, more)
