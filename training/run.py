"""A training run: its folder, what learns, progress, log, saved state.

A run is a sequence of stages; each trains one learner (the enhancer or the guidance) for a number
of iterations. `Run.stage` yields a stage's batches. Between them it does the housekeeping: every
`display_iter` iterations it compares the learner with its best weights of the stage, writes a line
of log.csv and saves `last.pt`, from which a run goes on exactly. It also saves after an iteration
in which SIGUSR1 came.
"""

from __future__ import annotations

import csv
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn
from torchvision.utils import save_image
from tqdm import tqdm

from data.datasets import loading_failure
from models.enhancer import UNetEnhancer, enhance_images
from training.learner import Learner
from training.saved_state import LAYOUT, damaged, rebuild, require_like
from training.schedule import OF_GUIDANCE, REFINEMENT, STAGES, Schedule
from utils import checkpoint
from utils.errors import UserError, WorkError, lacks_memory
from utils.files import atomic_path
from utils.signals import (
    Interrupted,
    hold_signals,
    release_signals,
    reset_signals,
    saving_asked,
)

SCORE_WINDOW = 30  # an enhancer's score is the mean of so many iterations (docs/method.md 7)
SAMPLE_DISPLAYS = 10  # a grid of samples every so many displays
LOG_COLUMNS = (
    "iteration",
    "stage",
    "round",
    "stage_iteration",
    "loss",
    "guidance",
    "identity",
    "psnr",
    "learning_rate",
    "seconds",
)


class Run:
    """A training run, to be entered with `with`.

    An error or a signal inside the block keeps the state of the last finished iteration, and ends
    as a `WorkError` or an `Interrupted` that say how to go on.

    Args:
        folder: {save_dir}/{exp_name}.
        record: of everything that decides the result, as a dict (`training.record`).
        enhancer: learns in the warm-up and the rounds.
        guidance: learns in the initialisation and the refinements; None for RAVE.
        limit: bound on enhancer iterations of the whole run.
        device: where batches go.
        samples: photographs (N, 3, H, W) in [0, 1] for the grids of samples; None draws none.
        amp: compute their light maps in bf16 autocast.

    Attributes:
        schedule: where the run stands.
        constants: tensors that were computed once, such as the residual vector.
    """

    def __init__(
        self,
        folder: Path,
        record: dict,
        enhancer: Learner,
        guidance: Learner | None = None,
        *,
        limit: int,
        device: torch.device,
        samples: Tensor | None = None,
        amp: bool = False,
    ) -> None:
        self.folder = folder
        self._record = record
        self.enhancer, self.guidance = enhancer, guidance
        self.limit = limit
        self.device = device
        self.samples, self.amp = samples, amp
        self.constants: dict = {}
        self.schedule = Schedule()
        self._whole = False  # whether the state in memory is that of a finished iteration
        self._save_due = False
        self._log_trimmed = False

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        hold_signals()  # a second signal must not stop the saving
        if self._whole:
            with suppress(UserError, MemoryError, RuntimeError):  # else the state before holds
                self.save()
        reset_signals()
        if isinstance(error, Interrupted):
            error.remedy = f"stopped at {self.where()}; the same command with --resume goes on"
            return
        sentence = loading_failure(error)
        if sentence is not None or isinstance(error, OSError):
            remedy = "the same command with --resume goes on"
            raise WorkError(f"{sentence or error}. Stopped at {self.where()}; {remedy}") from error
        if lacks_memory(error):
            sentence = "out of memory; a smaller --train_batch_size or --image_size may help"
        elif isinstance(error, UserError):
            sentence = str(error)
        if sentence is not None:
            raise WorkError(
                f"{sentence}. Stopped at {self.where()}; --resume goes on with the same arguments, "
                "and the weights in snapshots_model serve as --unet_pretrain_dir of another run"
            ) from error

    def where(self) -> str:
        """The stage and how many of its iterations are done, in words."""
        schedule = self.schedule
        name = f"{schedule.stage} {schedule.round}" if schedule.round else schedule.stage
        return f"iteration {schedule.done} of {name}" if name else "the beginning"

    @property
    def finished(self) -> bool:
        """Whether the enhancer has had all its iterations."""
        return self.schedule.iteration >= self.limit

    def rounds(self) -> Iterator[int]:
        """Yield the rounds' numbers, from the one where a resumed run stands to the limit."""
        for number in count(max(1, self.schedule.round)):
            yield number
            if self.finished:
                return

    def is_behind(self, stage: str, number: int) -> bool:
        """Whether a resumed run has this stage of this round behind it."""
        schedule = self.schedule
        place = (schedule.round, STAGES.index(schedule.stage) if schedule.stage else -1)
        return (number, STAGES.index(stage)) < place

    def done_in(self, stage: str, number: int) -> int:
        """Iterations of this stage of this round that a resumed run has behind it."""
        schedule = self.schedule
        return schedule.done if (schedule.stage, schedule.round) == (stage, number) else 0

    def stage(
        self,
        stage: str,
        number: int,
        length: int,
        batches: Iterator[list[Tensor]],
        display_iter: int,
    ) -> Iterator[list[Tensor]]:
        """Yield a stage's batches; afterwards the learner has its best weights of the stage.

        The loop's body must `step` and then `record` each iteration, and may then `extend` the
        stage. A signal that comes between waits until the iteration is whole. A stage that a
        resumed run has behind it yields nothing and changes nothing.

        Args:
            stage: one of `STAGES`.
            number: of the round, 0 before the first one.
            length: in iterations.
            batches: endless; it goes on where the run stands.
            display_iter: iterations between comparisons, log lines and saved states.

        Yields:
            Lists of tensors, on the run's device.
        """
        if self.is_behind(stage, number):
            return
        schedule = self.schedule
        schedule.begin(stage, number, length)
        self._display_iter = display_iter
        self._whole = True
        with self._progress() as self._bar:
            while not (self.is_over or self._at_limit):
                started = time.perf_counter()
                yield [part.to(self.device, non_blocking=True) for part in next(batches)]
                schedule.seconds += time.perf_counter() - started
                self._bar.total = self._end
                self._bar.update()
                if saving_asked() or self._save_due:
                    self.save()
                self._whole = True
                release_signals()
                self._save_samples()
        self._whole = False
        # At the limit only after the state is saved, and never saved itself: so a run that is
        # resumed with a higher one goes on as if it had always had it.
        if schedule.unjudged and self._at_limit:
            self._compare_with_best()
            self._log(schedule.unjudged)
        self.learner.return_to_best()

    @property
    def is_over(self) -> bool:
        """Whether the present stage has had all its iterations."""
        return self.schedule.done >= self.schedule.length

    @property
    def _at_limit(self) -> bool:
        return self.finished and self.schedule.stage not in OF_GUIDANCE

    @property
    def learner(self) -> Learner:
        """What the present stage trains."""
        return self.guidance if self.schedule.stage in OF_GUIDANCE else self.enhancer

    def step(self, loss: Tensor, clip_grad_norm: float = 0.0) -> None:
        """Take one step down the gradient of the loss; until `stage` goes on, signals wait.

        Raises:
            WorkError: the loss is not finite; the weights were not touched by it.
        """
        if not torch.isfinite(loss):
            raise WorkError(
                f"the loss is {loss.item()} at iteration {self.schedule.done + 1} of "
                f"{self.schedule.stage}; a lower learning rate may help, and the best weights are "
                f"kept in {self.folder}"
            )
        self.learner.backward(loss)
        hold_signals()
        self._whole = False
        self.learner.step(clip_grad_norm)

    def record(self, terms: Mapping[str, Tensor], score: float, window: int) -> None:
        """Count an iteration; at a display, compare with the best and write a line of log.csv.

        Args:
            terms: the loss and its parts.
            score: how good the iteration was.
            window: the learner is judged by the mean of so many scores.
        """
        schedule = self.schedule
        schedule.done += 1
        schedule.iteration += schedule.stage not in OF_GUIDANCE
        schedule.scores = [*schedule.scores, score][-window:]
        values = {name: value.item() for name, value in terms.items() if name in LOG_COLUMNS}
        figures = {name: f"{value:.4g}" for name, value in values.items()}
        self._bar.set_postfix(figures, refresh=False)
        displayed = schedule.done % self._display_iter == 0
        schedule.unjudged = {}
        if displayed or self.is_over:
            if displayed or schedule.best_score == -math.inf:
                self._compare_with_best()
            self._log(values)
        elif self._at_limit and schedule.best_score == -math.inf:
            schedule.unjudged = values
        self._save_due = displayed or self.is_over or self._at_limit

    def extend(self, iterations: int) -> None:
        """Lengthen the present stage."""
        self.schedule.length += iterations

    def restart_enhancer(self, enhancer: nn.Module) -> None:
        """Replace the enhancer's weights and optimiser, and judge it afresh."""
        self.schedule.restarts += 1
        self.schedule.since_restart = 0
        self.schedule.forget_scores()
        self.enhancer.restart(enhancer)

    def save(self) -> None:
        """Write `last.pt`, whole or not at all."""
        learners = {"enhancer": self.enhancer, "guidance": self.guidance}
        state = {
            "layout": LAYOUT,
            "record": self._record,
            "schedule": asdict(self.schedule),
            "learners": {name: one.state_dict() for name, one in learners.items() if one},
            "constants": self.constants,
        }
        checkpoint.save(state, self.folder / "last.pt")

    def restore(self, state: dict) -> None:
        """Restore a state that `read_state` gave.

        Raises:
            UserError: a part of it is damaged, or another run's.
        """
        learners = {"enhancer": self.enhancer, "guidance": self.guidance}
        learners = {name: one for name, one in learners.items() if one}
        try:
            self.schedule = rebuild(Schedule, state["schedule"], "schedule")
            self.schedule.check([s for s in STAGES if self.guidance or s not in OF_GUIDANCE])
            saved = state["learners"]
            if not isinstance(saved, dict) or saved.keys() != learners.keys():
                raise ValueError("learners are not those of this run")
            for name, learner in learners.items():
                learner.load_state_dict(saved[name], f"learners.{name}")
            if self.schedule.stage == REFINEMENT and self.enhancer.best is None:
                raise ValueError("learners.enhancer.best is missing")
            require_like(state["constants"], self._constants_like(state["constants"]), "constants")
        except ValueError as error:
            raise damaged(self.folder / "last.pt", error) from error
        self.constants = state["constants"]

    def _constants_like(self, saved: object) -> dict:
        """An example of the saved constants: CLIP-LIT's rounds are added one by one."""
        rounds = saved.get("rounds") if isinstance(saved, dict) and self.guidance else None
        if not isinstance(rounds, dict):
            return self.constants
        weights = self.enhancer.module.state_dict()
        return {"rounds": {number: weights for number in rounds if type(number) is int}}

    def _compare_with_best(self) -> None:
        """Keep the learner's weights if the mean of the last scores is the stage's highest."""
        schedule = self.schedule
        if not statistics.fmean(schedule.scores) > schedule.best_score:
            return
        schedule.best_score = statistics.fmean(schedule.scores)
        self.learner.keep_best()
        names = [f"snapshots_model/best_model_round{schedule.round}.pth"]
        names.append(f"snapshots_model/iter_{schedule.iteration}.pth")
        if schedule.stage in OF_GUIDANCE:
            number = f"round{schedule.round}" if schedule.round else "epoch0"
            names = [f"snapshots_guidance/best_guidance_learner_{number}.pth"]
        for name in names:
            checkpoint.save_weights(self.learner.result(), self.folder / name)

    def _log(self, values: Mapping[str, float]) -> None:
        """Append a line to log.csv."""
        schedule = self.schedule
        file = self.folder / "log.csv"
        if not self._log_trimmed:
            self._trim_log(file)
        row = {
            "iteration": schedule.iteration,
            "stage": schedule.stage,
            "round": schedule.round,
            "stage_iteration": schedule.done,
            "learning_rate": self.learner.optimizer.param_groups[0]["lr"],
            "seconds": round(schedule.seconds, 2),
            **values,
        }
        with file.open("a", newline="") as stream:
            csv.DictWriter(stream, LOG_COLUMNS, lineterminator="\n").writerow(row)
        schedule.log_rows += 1

    def _trim_log(self, file: Path) -> None:
        """Drop the lines of log.csv that the saved state has not seen, once a process."""
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        lines = lines[: self.schedule.log_rows + 1] or [",".join(LOG_COLUMNS) + "\n"]
        with atomic_path(file) as temporary:
            temporary.write_text("".join(lines))
        self._log_trimmed = True

    @torch.no_grad()
    def _save_samples(self) -> None:
        """Save a grid of the same photographs and their results, every so many displays."""
        number = self.schedule.iteration
        due = number == 1 or number % (SAMPLE_DISPLAYS * self._display_iter) == 0
        if self.samples is None or not due or self.schedule.stage in OF_GUIDANCE:
            return
        enhancer = UNetEnhancer().to(self.device)  # not the compiled one, which knows other shapes
        enhancer.load_state_dict(self.enhancer.result().state_dict())
        enhanced = [
            enhance_images(enhancer, image[None].to(self.device), self.amp).float().cpu()
            for image in self.samples
        ]
        with atomic_path(self.folder / "samples" / f"iter_{number}.png") as temporary:
            save_image(torch.cat([self.samples, *enhanced]), temporary, nrow=len(self.samples))

    def _progress(self) -> tqdm:
        schedule = self.schedule
        name = f"{schedule.stage} {schedule.round}" if schedule.round else schedule.stage
        return tqdm(
            total=self._end,
            initial=schedule.done,
            desc=name,
            dynamic_ncols=True,
            disable=self._end <= schedule.done,  # nothing to do
        )

    @property
    def _end(self) -> int:
        """Iterations that the present stage will have, unless it is extended."""
        schedule = self.schedule
        if schedule.stage in OF_GUIDANCE:
            return schedule.length
        return min(schedule.length, schedule.done + self.limit - schedule.iteration)
