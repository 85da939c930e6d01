"""What a run writes down for people: log, curves, samples, best weights; and what it shows.

Several processes may share a run; rank 0 alone writes. What a run goes on from is not here but in
`last.pt` (training/run.py).
"""

from __future__ import annotations

import csv
import gc
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn
from tqdm import tqdm

from training.log import Log
from training.plan import Pace, Plan, clock, cost_sentence
from training.plots import Samples, save_curves
from training.schedule import OF_GUIDANCE, Schedule
from utils import checkpoint, distributed
from utils.errors import shows_progress, tell, warn

SAMPLE_DISPLAYS = 10  # a grid of samples every so many displays
STATES = 10  # times the weights' size: last.pt, the best of the first rounds, final.*
CURVES_SECONDS = 60  # at least, between drawings of the curves
SNAPSHOT = re.compile(r"iter_(\d+)\.pth")


class Journal:
    """What a run in `folder` writes down.

    Args:
        folder: {save_dir}/{exp_name}.
        plan: the iterations that the run will have.
        samples: draws grids of photographs; None draws none.
        keep: how many `iter_*.pth` to keep, the newest; None for all.
        board: TensorBoard's writer, a `SummaryWriter`; None for none.
        display_iter: enhancer iterations between the lines of its log.
        weights_bytes: size of the enhancer's weights.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        *,
        samples: Samples | None = None,
        keep: int | None = None,
        board: object | None = None,
        display_iter: int = 20,
        weights_bytes: int = 0,
    ) -> None:
        self.folder = folder
        self.plan, self.pace = plan, Pace()
        self.samples, self.keep, self.board = samples, keep, board
        self.display_iter, self.weights_bytes = display_iter, weights_bytes
        self._log_file = Log(folder / "log.csv")
        self._drawn = time.monotonic()
        self._figures = ""

    @contextmanager
    def progress(self, schedule: Schedule, idle: bool) -> Iterator[None]:
        """Show the whole run's progress while a stage is in work; `idle` shows nothing."""
        self.pace.pause()
        self._bar = tqdm(
            total=self.plan.total,
            initial=sum(self.plan.done(schedule)),
            desc=schedule.title,
            dynamic_ncols=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",
            disable=idle or not shows_progress(),
        )
        with self._bar:
            yield

    def show(self, values: Mapping[str, float]) -> None:
        """Show an iteration's figures beside the bar."""
        self._figures = ", ".join(f"{name}={value:.4g}" for name, value in values.items())

    def count(self, schedule: Schedule) -> None:
        """Count an iteration; after the first ones say what the run will cost."""
        paced = self.pace.count(schedule.stage)
        left = self.pace.seconds_left(self.plan, schedule)
        end = "" if left is None else f", ends {clock(left)}"
        self._bar.set_postfix_str(self._figures + end, refresh=False)
        self._bar.update()
        if paced:
            cost = cost_sentence(self.plan, schedule, self.pace)
            tell(f"{cost}; up to {self.disk() / 1e9:.2f} GB of disk in {self.folder}")

    def disk(self) -> float:
        """Bytes that the folder will hold at most: each display may have the best weights."""
        displays = self.plan.enhancer // self.display_iter
        snapshots = displays if self.keep is None else min(displays, self.keep)
        weights = self.weights_bytes * (snapshots + self.plan.refinements + STATES)
        grids = 1 + displays // SAMPLE_DISPLAYS if self.samples else 0
        return weights + (grids and grids * self.samples.grid_bytes())

    def log(self, schedule: Schedule, learning_rate: float, values: Mapping[str, float]) -> None:
        """Append a line to log.csv; now and then draw the curves."""
        if distributed.is_main():
            row = {
                "iteration": schedule.iteration,
                "stage": schedule.stage,
                "round": schedule.round,
                "stage_iteration": schedule.done,
                "learning_rate": learning_rate,
                "seconds": round(schedule.seconds, 2),
                **values,
            }
            self._log_file.append(row, schedule.log_rows)
            self._add_scalars(schedule, values)
        schedule.log_rows += 1
        if time.monotonic() - self._drawn >= CURVES_SECONDS:
            self.draw_curves(schedule)
            gc.collect()  # a figure's parts know each other: 2 MB a drawing would stay

    def _add_scalars(self, schedule: Schedule, values: Mapping[str, float]) -> None:
        """Hand a log line to TensorBoard: the enhancer's by its iterations in the whole run."""
        if self.board is None:
            return
        of_guidance = schedule.stage in OF_GUIDANCE
        step = schedule.done if of_guidance else schedule.iteration
        stage = schedule.title if of_guidance else "enhancer"
        for name, value in values.items():
            self.board.add_scalar(f"{stage}/{name}", value, step)
        self.board.flush()

    def draw_curves(self, schedule: Schedule) -> None:
        """Draw curves.png from what log.csv holds by now, if it holds anything."""
        self._drawn = time.monotonic()
        if not distributed.is_main():
            return
        try:
            if rows := self._log_file.rows(schedule.log_rows):
                save_curves(self.folder / "curves.png", rows)
        except (ValueError, KeyError, csv.Error):
            warn(f"warning: no curves, since {self._log_file.file} was changed or is damaged")

    def save_best(self, schedule: Schedule, learner: nn.Module) -> None:
        """Save a stage's best weights so far; drop the oldest of the enhancer's, if asked to."""
        if not distributed.is_main():
            return
        for name in schedule.snapshots():
            checkpoint.save_weights(learner, self.folder / name)
        if self.keep is not None and schedule.stage not in OF_GUIDANCE:
            folder = self.folder / "snapshots_model"
            found = ((SNAPSHOT.fullmatch(path.name), path) for path in folder.iterdir())
            by_number = sorted((int(match[1]), path) for match, path in found if match)
            for _, path in by_number[: -self.keep]:
                path.unlink(missing_ok=True)

    def sample(self, schedule: Schedule, enhancer: nn.Module) -> None:
        """Save a grid of the same photographs and their results, every so many displays."""
        number = schedule.iteration
        due = number == 1 or number % (SAMPLE_DISPLAYS * self.display_iter) == 0
        if self.samples and distributed.is_main() and due and schedule.stage not in OF_GUIDANCE:
            file = self.folder / "samples" / f"iter_{number}.png"
            self.samples.save(file, enhancer.state_dict())

    def save_results(self, schedule: Schedule, learned: Mapping[str, nn.Module]) -> None:
        """Write the final weights of what has learned, in both formats, and the curves.

        Args:
            schedule: of the run that is over.
            learned: by the names of their folders.
        """
        if distributed.is_main():
            for folder, module in learned.items():
                for file in ("final.pth", "final.safetensors"):
                    checkpoint.save_weights(module, self.folder / folder / file)
        self.draw_curves(schedule)
