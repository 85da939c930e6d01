"""A training run: what learns, stage by stage, and the state that it goes on from.

A run is a sequence of stages; each trains one learner (the enhancer or the guidance) for a number
of iterations. `Run.stage` yields a stage's batches. Between them it does the housekeeping: every
`display_iter` iterations it compares the learner with its best weights of the stage, writes a line
of the log (training/journal.py) and saves `last.pt`, from which a run goes on exactly. It also
saves after an iteration in which SIGUSR1 came.

Several processes may share each batch (utils/distributed.py). They judge the whole batch's terms,
so that all of them decide alike; rank 0 alone writes.
"""

from __future__ import annotations

import math
import signal
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor, nn

from data.datasets import Part, loading_failure
from training.journal import Journal
from training.learner import Learner
from training.log import LOG_COLUMNS
from training.plan import Plan
from training.saved_state import LAYOUT, damaged, rebuild, require_like, rounds_like
from training.schedule import OF_GUIDANCE, REFINEMENT, STAGES, Schedule
from training.validation import Validation
from utils import checkpoint, distributed
from utils.errors import UserError, WorkError, lacks_memory
from utils.signals import (
    Interrupted,
    hold_signals,
    release_signals,
    reset_signals,
    saving_asked,
    waiting_signal,
)

SCORE_WINDOW = 30  # an enhancer's score is the mean of so many iterations (docs/method.md 7)


class Run:
    """A training run, to be entered with `with`.

    An error or a signal inside the block keeps the state of the last finished iteration, and ends
    as a `WorkError` or an `Interrupted` that say how to go on.

    Args:
        folder: {save_dir}/{exp_name}.
        record: `training.record.Record` as a dict; for photographs, what `write_photographs` gave.
        enhancer: learns in the warm-up and the rounds.
        guidance: learns in the initialisation and the refinements; None for RAVE.
        limit: bound on enhancer iterations of the whole run.
        device: where batches go.
        journal: writes down what it does; None for a log without samples.
        validation: scores the enhancer on photographs held out; None scores nothing.

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
        journal: Journal | None = None,
        validation: Validation | None = None,
    ) -> None:
        self.folder = folder
        self._record = record
        self.enhancer, self.guidance = enhancer, guidance
        self.limit = limit
        self.device = device
        self.journal = journal or Journal(folder, Plan(limit))
        self.validation = validation
        self.constants: dict = {}
        self.schedule = Schedule()
        self._whole = False  # whether the state in memory is that of a finished iteration
        self._save_due = self._save_asked = False
        self._stopped_by: int | None = None  # a signal, when all processes know of it

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
        if self._stopped_by:
            with suppress(WorkError):  # none ends before rank 0 has saved
                distributed.wait_for_all()
        reset_signals()
        at = f"at {self.schedule.where()}"
        if isinstance(error, Interrupted):
            error.remedy = f"stopped {at}; the same command with --resume goes on"
            return
        sentence = loading_failure(error)
        if sentence is not None or isinstance(error, OSError):
            remedy = "the same command with --resume goes on"
            raise WorkError(f"{sentence or error}. Stopped {at}; {remedy}") from error
        if lacks_memory(error):
            sentence = "out of memory; --accumulate or a smaller --train_batch_size may help"
        elif isinstance(error, UserError):
            sentence = str(error)
        if sentence is not None:
            raise WorkError(
                f"{sentence}. Stopped {at}; --resume goes on with the same arguments, and the "
                "weights in snapshots_model serve as --unet_pretrain_dir of another run"
            ) from error

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

    def stage(
        self,
        stage: str,
        number: int,
        length: int,
        batches: Iterator[list[Part]],
        display_iter: int,
    ) -> Iterator[Iterator[Part]]:
        """Yield a stage's batches; afterwards the learner has its best weights of the stage.

        The loop's body must compute `backward` of each part of a batch, then `step` and `record`
        the iteration, and may then `extend` the stage. A signal that comes after `step` waits until
        the iteration is whole; where several processes train, any signal does, so that all of them
        end after the same iteration. A stage that a resumed run has behind it yields nothing and
        changes nothing.

        Args:
            stage: one of `STAGES`.
            number: of the round, 0 before the first one.
            length: in iterations.
            batches: endless; it goes on where the run stands.
            display_iter: iterations between comparisons, log lines and saved states.

        Yields:
            Each batch's parts, on the run's device.
        """
        if self.schedule.is_behind(stage, number):
            return
        schedule = self.schedule
        schedule.begin(stage, number, length)
        self._display_iter = display_iter
        self._whole = True
        together = distributed.world_size() > 1
        if together:
            hold_signals()
        with self.journal.progress(schedule, idle=self.is_over or self._at_limit):
            while not (self.is_over or self._at_limit):
                started = time.perf_counter()
                self._sums: dict[str, Tensor] = {}
                self.learner.clear_gradients()
                yield self._parts(next(batches))
                schedule.seconds += time.perf_counter() - started
                self.journal.count(schedule)
                if self._save_asked or self._save_due:
                    self.save()
                self._whole = True
                release_signals()
                if self._stopped_by:
                    raise Interrupted(self._stopped_by)
                self.journal.sample(schedule, self.enhancer.result())
        if together:
            release_signals()
        self._whole = False
        # At the limit only after the state is saved, and never saved itself: so a run that is
        # resumed with a higher one goes on as if it had always had it.
        if schedule.unjudged and self._at_limit:
            self._compare_with_best()
            self._log(schedule.unjudged | self._validate())
        self.learner.return_to_best()

    def _parts(self, batch: list[Part]) -> Iterator[Part]:
        """Yield a batch's parts; the gradients of all are exchanged at the last one."""
        for number, (share, tensors) in enumerate(batch, 1):
            self._stands_in = share == 0
            own = self.learner.keeping_gradients() if number < len(batch) else nullcontext()
            with own:
                yield share, [part.to(self.device, non_blocking=True) for part in tensors]

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

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """Add a part's terms and the gradients of its loss to those of the batch."""
        if self._stands_in:
            terms = {name: 0.0 * value for name, value in terms.items()}
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
        self.learner.backward(terms["loss"])

    def step(self, clip_grad_norm: float = 0.0) -> dict[str, float]:
        """Take one step down the batch's gradient; until `stage` goes on, signals wait.

        Returns:
            The batch's terms.

        Raises:
            WorkError: the loss is not finite; the weights were not touched by it.
        """
        own = {name: value.item() for name, value in self._sums.items()}
        stopped_by = waiting_signal() or (signal.SIGTERM if distributed.is_orphan() else None)
        told = distributed.gather((own, stopped_by, saving_asked()))
        terms = {name: sum(sums[name] for sums, _, _ in told) for name in own}
        self._stopped_by = next((number for _, number, _ in told if number), None)
        self._save_asked = any(asked for _, _, asked in told)
        if not math.isfinite(terms["loss"]):
            raise WorkError(
                f"the loss is {terms['loss']} at iteration {self.schedule.done + 1} of "
                f"{self.schedule.stage}; a lower learning rate may help, and the best weights are "
                f"kept in {self.folder}"
            )
        hold_signals()
        self._whole = False
        self.learner.step(clip_grad_norm)
        return terms

    def record(self, terms: Mapping[str, float], score: float, window: int) -> None:
        """Count an iteration; at a display, compare with the best and write a line of log.csv.

        Args:
            terms: the batch's loss and its parts.
            score: how good the iteration was.
            window: the learner is judged by the mean of so many scores.
        """
        schedule = self.schedule
        schedule.done += 1
        schedule.iteration += schedule.stage not in OF_GUIDANCE
        schedule.scores = [*schedule.scores, score][-window:]
        values = {name: value for name, value in terms.items() if name in LOG_COLUMNS}
        self.journal.show(values)
        displayed = schedule.done % self._display_iter == 0
        schedule.unjudged = {}
        if displayed or self.is_over:
            if displayed or schedule.best_score == -math.inf:
                self._compare_with_best()
            self._log(values | self._validate())
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

    @property
    def _learners(self) -> dict[str, Learner]:
        learners = {"enhancer": self.enhancer, "guidance": self.guidance}
        return {name: learner for name, learner in learners.items() if learner}

    def save(self) -> None:
        """Write `last.pt`, whole or not at all."""
        if not distributed.is_main():
            return
        state = {
            "layout": LAYOUT,
            "record": self._record,
            "schedule": asdict(self.schedule),
            "learners": {name: one.state_dict() for name, one in self._learners.items()},
            "constants": self.constants,
        }
        checkpoint.save(state, self.folder / "last.pt")

    def restore(self, state: dict) -> None:
        """Restore a state that `read_state` gave.

        Raises:
            UserError: a part of it is damaged, or another run's.
        """
        learners = self._learners
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
            like = self.constants
            if self.guidance:
                like = rounds_like(self.schedule, self.enhancer.module.state_dict())
            require_like(state["constants"], like, "constants")
        except ValueError as error:
            raise damaged(self.folder / "last.pt", error) from error
        self.constants = state["constants"]

    def _compare_with_best(self) -> None:
        """Keep the learner's weights if the mean of the last scores is the stage's highest."""
        schedule = self.schedule
        if not statistics.fmean(schedule.scores) > schedule.best_score:
            return
        schedule.best_score = statistics.fmean(schedule.scores)
        self.learner.keep_best()
        self.journal.save_best(schedule, self.learner.result())

    def _log(self, values: Mapping[str, float]) -> None:
        self.journal.log(self.schedule, self.learner.optimizer.param_groups[0]["lr"], values)

    def _validate(self) -> dict[str, float]:
        """Score the enhancer on the photographs held out, where that is due at a log line."""
        schedule = self.schedule
        since = schedule.done % self._display_iter or self._display_iter  # the last line
        if self.validation is None or schedule.stage in OF_GUIDANCE:
            return {}
        return self.validation.score_if_due(schedule.iteration, since, self.enhancer.result())

    def save_results(self) -> None:
        """Write the final weights of what has learned, in both formats."""
        folders = {"enhancer": "snapshots_model", "guidance": "snapshots_guidance"}
        learned = {folders[name]: one.result() for name, one in self._learners.items()}
        self.journal.save_results(self.schedule, learned)
