"""What a run writes down: its log, curves, samples, best weights, and the sentence on its cost."""

import csv
import gc
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from models.enhancer import new_enhancer
from training import plan
from training.journal import Journal
from training.log import LOG_COLUMNS, Log
from training.plan import Pace, Plan, cost_sentence
from training.plots import Samples, over_all_stages, save_curves
from training.schedule import Schedule

OLD = LOG_COLUMNS[:10]  # of the first version


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path, Plan(100))


def line(**values):
    return {"stage": "round", "round": "1", "stage_iteration": "5", "loss": "2.0"} | values


def saved(folder):
    return sorted(path.name for path in (folder / "snapshots_model").glob("*.pth"))


@pytest.mark.parametrize(("keep", "newest"), [(None, 5), (2, 2), (9, 5)])
def test_the_newest_snapshots_are_kept(tmp_path, keep, newest):
    journal = Journal(tmp_path, Plan(1000), keep=keep)
    for iteration in (20, 40, 180, 900, 1000):  # 1000 follows 900, though not as a text
        journal.save_best(Schedule("round", 1, iteration=iteration), nn.Linear(1, 1))
    journal.save_best(Schedule("refinement", 1, iteration=1000), nn.Linear(1, 1))
    numbers = (20, 40, 180, 900, 1000)[-newest:]
    assert saved(tmp_path) == sorted(["best_model_round1.pth", *(f"iter_{n}.pth" for n in numbers)])
    assert (tmp_path / "snapshots_guidance" / "best_guidance_learner_round1.pth").is_file()


def test_an_old_log_gets_the_new_columns(tmp_path):
    old = {name: name for name in OLD}
    with (tmp_path / "log.csv").open("w") as stream:
        writer = csv.DictWriter(stream, OLD, lineterminator="\n")
        writer.writeheader()
        writer.writerows([old, old, old])
        stream.write("5,warm-")  # as a loss of power leaves it
    log = Log(tmp_path / "log.csv")
    log.append({"loss": 1.0, "p_backlit": 0.5, "val_psnr": 20.0}, rows_before=2)
    kept = old | dict.fromkeys(LOG_COLUMNS[10:], "")
    new = dict.fromkeys(LOG_COLUMNS, "") | {"loss": "1.0", "p_backlit": "0.5", "val_psnr": "20.0"}
    assert log.rows(9) == [kept, kept, new]
    assert (tmp_path / "log.csv").read_text().splitlines()[0] == ",".join(LOG_COLUMNS)


def test_curves_have_a_panel_for_each_kind_of_figure(tmp_path):
    sizes = []
    for more in ({}, {"val_psnr": "12.5", "val_ssim": "0.5"}, {"p_backlit": "0.7"}):
        save_curves(tmp_path / "curves.png", [line(), line(stage_iteration="10", **more)])
        sizes.append(Image.open(tmp_path / "curves.png").height)
    one, three, two = sizes
    assert one < two < three and three - two == two - one


def test_curves_are_drawn_over_all_stages():
    rows = [
        line(stage=stage, round=number, stage_iteration=done)
        for stage, number, done in (
            *[("initialisation", 0, 4), ("initialisation", 0, 8), ("warm-up", 0, 3)],
            *[("round", 1, 5), ("refinement", 1, 2), ("round", 2, 5)],
        )
    ]
    assert over_all_stages(rows) == ([4, 8, 11, 16, 18, 23], [0, 8, 11, 16, 18])


def test_curves_show_the_log(tmp_path):
    def drawn(losses):
        rows = [line(loss=loss, stage_iteration=n) for n, loss in enumerate(losses)]
        save_curves(tmp_path / "curves.png", rows)
        return np.asarray(Image.open(tmp_path / "curves.png").convert("L"))

    falling, rising = drawn(["9", "5", "1"]), drawn(["1", "5", "9"])
    assert falling.shape == rising.shape and (falling != rising).any()
    assert (drawn(["9", "inf", "1"]) != falling).any()  # the infinite one is left out


def test_a_damaged_log_costs_the_curves_alone(journal, tmp_path, capsys):
    (tmp_path / "log.csv").write_text("iteration,stage\n1,round\n")
    journal.draw_curves(Schedule(log_rows=1))
    assert "no curves" in capsys.readouterr().err
    assert not (tmp_path / "curves.png").exists()


def test_a_run_draws_its_curves_at_its_end(journal, tmp_path):
    schedule = Schedule("round", 1, 5)
    journal.log(schedule, 0.1, {"loss": 2.0})
    assert schedule.log_rows == 1 and not (tmp_path / "curves.png").exists()
    journal.save_results(schedule, {"snapshots_model": nn.Linear(1, 1)})
    assert (tmp_path / "curves.png").is_file()
    assert saved(tmp_path) == ["final.pth"]


def test_curves_are_drawn_once_a_minute(journal, tmp_path, monkeypatch):
    monkeypatch.setattr("training.journal.CURVES_SECONDS", 0)
    journal.log(Schedule("round", 1, 5), 0.1, {"loss": 2.0})
    assert (tmp_path / "curves.png").is_file()


class Board:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, *scalar):
        self.scalars.append(scalar)

    def flush(self):
        pass


def test_tensorboard_gets_what_the_log_gets(tmp_path):
    journal = Journal(tmp_path, Plan(10), board=Board())
    journal.log(Schedule("round", 1, 5, iteration=8), 0.1, {"loss": 2.0, "val_psnr": 20.0})
    journal.log(Schedule("refinement", 10, 3, iteration=8), 0.1, {"loss": 1.0})
    assert journal.board.scalars == [
        *(("enhancer/loss", 2.0, 8), ("enhancer/val_psnr", 20.0, 8)),
        ("refinement 10/loss", 1.0, 3),
    ]


@pytest.mark.parametrize(
    ("lengths", "guidance"),
    [
        ((92_000, 1000, 2100), 0),
        ((138_000, 1000, 2100, 8000, 1000), 8000 + 65_000),  # 65 whole rounds, and a part
        ((3100, 1000, 2100, 8000, 1000), 8000),  # after the last round nothing is refined
        ((3101, 1000, 2100, 8000, 1000), 9000),
        ((500, 1000, 2100, 8000, 1000), 8000),
    ],
)
def test_a_plan_counts_the_guidances_iterations(lengths, guidance):
    planned = Plan.of(*lengths)
    assert (planned.guidance, planned.total) == (guidance, lengths[0] + guidance)


def test_what_is_done_of_a_plan():
    planned = Plan.of(100, 10, 20, 8, 5)
    for schedule, done in (
        (Schedule(), (0, 0)),
        (Schedule("initialisation", 0, 3), (0, 3)),
        (Schedule("warm-up", 0, 4, iteration=4), (4, 8)),
        (Schedule("round", 2, 4, iteration=34), (34, 13)),
        (Schedule("refinement", 2, 4, iteration=50), (50, 17)),
    ):
        assert planned.done(schedule) == done


@pytest.fixture
def clock(monkeypatch):
    """A clock that the tests advance."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(plan, "time", clock := Clock())
    return clock


def timed(clock, pace, stage, seconds, iterations):
    """Let iterations pass; return how often the pace of their kind became known."""
    known = 0
    for _ in range(iterations):
        clock.now += seconds
        known += pace.count(stage)
    return known


def test_the_cost_is_known_after_ten_iterations(clock):
    planned, pace = Plan.of(1010, 10, 500, 100, 50), Pace()
    assert timed(clock, pace, "initialisation", 1, 9) == 0
    assert timed(clock, pace, "initialisation", 1, 1) == 1
    told = cost_sentence(planned, schedule := Schedule("initialisation", 0, 10), pace)
    assert "1,010 iterations of the enhancer and 150 of the guidance, 10 of them done" in told
    assert "1.00 s for each of the guidance's" in told and "hours" not in told
    pace.pause()
    clock.now += 1000  # between two stages
    assert timed(clock, pace, "warm-up", 36, 10) == 1
    schedule = Schedule("warm-up", 0, 10, iteration=10)
    assert pace.seconds_left(planned, schedule) == pytest.approx(1000 * 36 + 50)
    told = cost_sentence(planned, schedule, pace)
    assert "110 of them done: about 10.0 hours from here, until " in told
    assert timed(clock, pace, "warm-up", 36, 20) == 0


def test_an_unknown_guidance_counts_as_slow_as_the_enhancer(clock):
    planned, pace = Plan.of(1010, 10, 500, 100, 50), Pace()
    timed(clock, pace, "round", 2, 10)
    schedule = Schedule("round", 1, 10, iteration=20)
    assert pace.seconds_left(planned, schedule) == pytest.approx(2 * (990 + 50))


@pytest.mark.parametrize(("keep", "snapshots"), [(None, 4600), (3, 3)])
def test_the_disk_that_a_run_needs(tmp_path, keep, snapshots):
    samples = Samples(torch.rand(2, 3, 16, 16), torch.device("cpu"))
    journal = Journal(
        tmp_path, Plan.of(92_000, 1000, 2100), samples=samples, keep=keep, weights_bytes=1000
    )
    samples.save(tmp_path / "grid.png", new_enhancer(1.0).state_dict())
    assert samples.grid_bytes() == pytest.approx((tmp_path / "grid.png").stat().st_size, rel=0.2)
    assert journal.disk() == 1000 * (snapshots + 10) + 461 * samples.grid_bytes()


def test_the_cost_is_said_once(tmp_path, capsys):
    journal, schedule = Journal(tmp_path, Plan(30)), Schedule("round", 1)
    with journal.progress(schedule, idle=False):
        for _ in range(30):
            schedule.done += 1
            schedule.iteration += 1
            journal.show({"loss": 1.0})
            journal.count(schedule)
    told = re.findall(r"this run has 30 iterations.*", capsys.readouterr().out)
    assert len(told) == 1 and f"GB of disk in {tmp_path}" in told[0]
    assert "10 of them done: about 0.0 hours" in told[0]


def test_drawn_curves_leave_nothing_in_memory(journal, monkeypatch):
    monkeypatch.setattr("training.journal.CURVES_SECONDS", 0)
    journal.log(Schedule("round", 1, 5), 0.1, {"loss": 2.0})
    assert not [kept for kept in gc.get_objects() if type(kept) is Figure]


def test_all_processes_collect_garbage_once_a_minute_at_most(journal, monkeypatch):
    collected = []
    monkeypatch.setattr("training.journal.gc.collect", lambda: collected.append(1))
    monkeypatch.setattr("training.journal.distributed.is_main", lambda: False)
    monkeypatch.setattr(journal, "_drawn", -100.0)
    for _ in range(5):
        journal.log(Schedule("round", 1, 5), 0.1, {"loss": 2.0})
    assert collected == [1]
