"""What an inference run has to do, decided from names and sizes alone."""

import argparse
import os
import random
import time
import tracemalloc
from pathlib import Path

import pytest

import inference
from data.jobs import Job, plan, share_out

SECONDS, BYTES, NAMES = 10, 300e6, 200_000  # that planning may take, and for how many photographs


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


def work(source: Path, output: Path, kind: str) -> dict:
    return dict(
        input=str(source), output=str(output), format=kind, recursive=False, skip_existing=True
    )


# Names


def test_a_result_with_alpha_takes_no_name_of_another(tmp_path: Path) -> None:
    def named(kind: str, *names: str) -> list[tuple[str, str | None]]:
        (tmp_path / "in").mkdir(exist_ok=True)
        photos = [f"{tmp_path}/in/{name}" for name in names]
        orders = [photos, photos[::-1]]
        plans = [dict() for _ in orders]
        for order, results in zip(orders, plans, strict=True):
            jobs, _ = plan(order, tmp_path / "in", Path("out"), kind)
            for job in jobs:
                results[job.source] = (job.target, job.png)
        assert plans[0] == plans[1]
        return [plans[0][photo] for photo in photos]

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


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_planning_is_fast_and_small(kind: str, tmp_path: Path) -> None:
    count = 4000
    source, output = many_photos(tmp_path / "in", count), tmp_path / "out"
    output.mkdir()
    (tmp_path / "result").touch()
    for k in range(0, count, 2):
        os.link(tmp_path / "result", output / f"IMG_{k:06d}.{kind}")
    args = argparse.Namespace(**work(source, output, kind))
    seconds = []
    for _ in range(3):
        started = time.process_time()
        shares, skipped, _ = inference.share_work(args)
        seconds.append(time.process_time() - started)
    assert len(shares[0]) == skipped == count // 2
    assert min(seconds) / count <= SECONDS / NAMES
    tracemalloc.start()
    inference.share_work(args)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak / count <= BYTES / NAMES
