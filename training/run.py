"""What a training run keeps, and the one loop that all its stages go through.

A run is a sequence of stages; each trains one learner (the enhancer or the guidance) for a number
of iterations. Every `display_iter` iterations the loop compares the learner with its best weights
of the stage, writes a line of log.csv and saves `last.pt`, from which a run goes on exactly.
"""

from __future__ import annotations

import copy
import csv
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.utils import save_image
from tqdm import tqdm

from utils import checkpoint
from utils.errors import UserError
from utils.files import atomic_path

SCORE_WINDOW = 30  # a learner's score is the mean of so many iterations (method.md, 7)
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

Terms = dict[str, float]  # what an iteration reports: its loss, the loss's parts, its score


class Interrupted(Exception):
    """Ctrl-C or a termination signal came; the run's state is saved."""


@dataclass
class Learner:
    """A module in training, its optimiser and its best weights so far.

    Args:
        module: what learns.
        optimizer: over its parameters.
        average: a moving average of the weights, which then stands for the module everywhere.
        best: the best weights of the stage, a copy; None before the first comparison.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    average: AveragedModel | None = None
    best: dict[str, Tensor] | None = None

    @classmethod
    def create(
        cls, module: nn.Module, lr: float, weight_decay: float, ema_decay: float = 0.0
    ) -> Learner:
        """Train `module` with Adam; average its weights if `ema_decay` is not 0."""
        optimizer = torch.optim.Adam(module.parameters(), lr=lr, weight_decay=weight_decay)
        average = None
        if ema_decay:
            average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))
        return cls(module, optimizer, average)

    def result(self) -> nn.Module:
        """The module to judge and keep: the average where there is one."""
        return self.module if self.average is None else self.average.module

    def step(self, loss: Tensor, clip_grad_norm: float = 0.0) -> None:
        """Take one optimiser step down the gradient of `loss`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if clip_grad_norm:
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.module)

    def keep_best(self) -> None:
        """Remember the present weights as the best ones."""
        self.best = copy.deepcopy(self.result().state_dict())

    def return_to_best(self) -> None:
        """Go on from the best weights, in the module and in its average."""
        if self.best is not None:
            self.module.load_state_dict(self.best)
            self.result().load_state_dict(self.best)

    def restart(self, module: nn.Module) -> None:
        """Go on with the weights of another module, as if training had only begun."""
        self.module.load_state_dict(module.state_dict())
        self.optimizer.state.clear()
        if self.average is not None:
            self.average.module.load_state_dict(module.state_dict())
            self.average.n_averaged.zero_()
        self.best = None

    def state_dict(self) -> dict:
        """Everything that a resumed run needs."""
        return {
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "best": self.best,
        }

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best = state["best"]


@dataclass
class Schedule:
    """Where a run stands; `rounds` and `stages` count from 0, iterations are those done."""

    stage: str = "start"
    round: int = 0
    done: int = 0  # iterations of this stage
    length: int = 0  # iterations that this stage will have
    iteration: int = 0  # enhancer iterations of the whole run
    restarts: int = 0  # collapsed enhancers that were replaced
    scores: list[float] = field(default_factory=list)  # the last SCORE_WINDOW of this stage
    best_score: float = -math.inf
    log_rows: int = 0
    seconds: float = 0.0  # spent on iterations since the run began

    def begin(self, stage: str, round_: int, length: int) -> None:
        """Start a stage, unless the run was resumed in the midst of it."""
        if (self.stage, self.round) != (stage, round_):
            self.stage, self.round, self.done, self.length = stage, round_, 0, length
            self.forget_scores()

    def forget_scores(self) -> None:
        """Judge the learner afresh."""
        self.scores, self.best_score = [], -math.inf

    def add_score(self, score: float) -> None:
        """Count one more iteration's score among the last ones."""
        self.scores = [*self.scores, score][-SCORE_WINDOW:]


@dataclass
class Run:
    """A training run: its folder, its place in the schedule, its learners and their arguments.

    Args:
        folder: {save_dir}/{exp_name}.
        arguments: every argument that decides the result.
        learners: by name, "enhancer" and perhaps "guidance".
        constants: tensors that were computed once, such as the residual vector.
    """

    folder: Path
    arguments: dict
    learners: dict[str, Learner]
    constants: dict = field(default_factory=dict)
    schedule: Schedule = field(default_factory=Schedule)

    def save(self) -> None:
        """Write `last.pt`, whole or not at all."""
        state = {
            "arguments": self.arguments,
            "schedule": asdict(self.schedule),
            "learners": {name: learner.state_dict() for name, learner in self.learners.items()},
            "constants": self.constants,
            "generator": torch.get_rng_state(),  # the only one that training draws from
        }
        checkpoint.save(state, self.folder / "last.pt")

    def restore(self, state: dict) -> None:
        """Take over the state that `read_state` found."""
        self.schedule = Schedule(**state["schedule"])
        self.constants = state["constants"]
        for name, learner in self.learners.items():
            learner.load_state_dict(state["learners"][name])
        torch.set_rng_state(state["generator"])

    def log(self, terms: Terms, learning_rate: float) -> None:
        """Append a line to log.csv, after dropping lines that the saved state has not seen."""
        schedule = self.schedule
        file = self.folder / "log.csv"
        lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
        if len(lines) != schedule.log_rows + 1:
            lines = lines[: schedule.log_rows + 1] or [",".join(LOG_COLUMNS) + "\n"]
            with atomic_path(file) as temporary:
                temporary.write_text("".join(lines))
        row = {
            "iteration": schedule.iteration,
            "stage": schedule.stage,
            "round": schedule.round,
            "stage_iteration": schedule.done,
            "learning_rate": learning_rate,
            "seconds": round(schedule.seconds, 2),
            **terms,
        }
        with file.open("a", newline="") as stream:
            csv.DictWriter(stream, LOG_COLUMNS, extrasaction="ignore").writerow(row)
        schedule.log_rows += 1


def open_folder(folder: Path, resume: bool, arguments: dict) -> dict | None:
    """Prepare a run's folder and find the state to go on from.

    Args:
        folder: {save_dir}/{exp_name}.
        resume: whether the user asked to go on.
        arguments: those that decide the result; a run goes on only with the same.

    Returns:
        The saved state, or None for a run that starts anew.

    Raises:
        UserError: there is a run that would be overwritten, none to resume, or one with other
            arguments.
    """
    last = folder / "last.pt"
    if not resume:
        if last.exists():
            raise UserError(
                f"{folder} holds a run already; add --resume to go on with it, or choose another "
                "--exp_name"
            )
        return None
    if not folder.is_dir():
        raise UserError(f"no run to resume in {folder}; check --save_dir and --exp_name")
    if not last.exists():
        print(f"{folder} has no saved state yet: the run starts from its beginning")
        return None
    state = checkpoint.load(last)
    before = state["arguments"]
    changed = sorted(name for name in arguments if arguments[name] != before.get(name))
    if changed:
        was = ", ".join(f"--{name} was {before.get(name)}" for name in changed)
        raise UserError(f"the run in {folder} had other arguments: {was}; give the same to resume")
    return state


def run_stage(
    run: Run,
    learner: Learner,
    step: Callable[[], Terms],
    *,
    display_iter: int,
    limit: int | None = None,
    extend: Callable[[Terms], int] = lambda terms: 0,
    on_best: Callable[[], None] = lambda: None,
) -> None:
    """Train one learner to the end of the stage that `run.schedule` has begun.

    Args:
        run: is logged and saved as it goes.
        learner: what this stage trains.
        step: does one iteration and reports its terms; "score" says how good it was, and is
            missing where the iteration should not be judged.
        display_iter: iterations between comparisons, log lines and saved states.
        limit: the run's bound on enhancer iterations; None where the stage does not count as such.
        extend: called with the last terms when the stage is over; says how many more to add.
        on_best: called when the mean score is the stage's highest, to write checkpoints.

    Raises:
        Interrupted: by a signal; the state was saved.
        UserError: the loss was not finite; the weights were not touched by it.
    """
    schedule = run.schedule
    with signals_caught() as caught, _progress(schedule) as bar:
        while schedule.done < schedule.length and (limit is None or schedule.iteration < limit):
            started = time.perf_counter()
            terms = step()
            schedule.seconds += time.perf_counter() - started
            schedule.done += 1
            schedule.iteration += limit is not None
            if "score" in terms:
                schedule.add_score(terms["score"])
            figures = {name: f"{value:.4g}" for name, value in terms.items() if name != "score"}
            bar.set_postfix(figures, refresh=False)
            bar.update()
            ended, at_limit = schedule.done == schedule.length, schedule.iteration == limit
            shown = ended or schedule.done % display_iter == 0
            # The limit itself is judged only if nothing was, so that a run that is resumed with a
            # higher one goes on as if it had always had it.
            if shown or (at_limit and schedule.best_score == -math.inf):
                compare_with_best(schedule, learner, on_best)
                run.log(terms, learner.optimizer.param_groups[0]["lr"])
            if ended:
                schedule.length += extend(terms)
            bar.total = schedule.length
            if caught or shown or at_limit:
                run.save()
            if caught:
                raise Interrupted


def compare_with_best(schedule: Schedule, learner: Learner, on_best: Callable[[], None]) -> None:
    """Keep the learner's weights if the mean of the last scores is the stage's highest."""
    if schedule.scores and statistics.fmean(schedule.scores) > schedule.best_score:
        schedule.best_score = statistics.fmean(schedule.scores)
        learner.keep_best()
        on_best()


def _progress(schedule: Schedule) -> tqdm:
    name = f"{schedule.stage} {schedule.round}" if schedule.round else schedule.stage
    return tqdm(total=schedule.length, initial=schedule.done, desc=name, dynamic_ncols=True)


@contextmanager
def signals_caught() -> Iterator[list[int]]:
    """Collect Ctrl-C and termination signals in the list yielded, to finish the iteration first."""
    caught: list[int] = []
    handled = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: caught.append(number)) for number in handled]
    try:
        yield caught
    finally:
        for number, handler in zip(handled, before, strict=True):
            signal.signal(number, handler)


def check_finite(loss: Tensor, run: Run) -> None:
    """Stop the run before a loss that is not finite reaches the weights.

    Raises:
        UserError: it is not finite.
    """
    if not torch.isfinite(loss):
        raise UserError(
            f"the loss is {loss.item()} at iteration {run.schedule.done + 1} of "
            f"{run.schedule.stage}; the last good state and best weights are kept in {run.folder}. "
            "A lower learning rate may help"
        )


def learning_rate(base: float, iteration: int, warmup: int, cosine_length: int) -> float:
    """The learning rate of an iteration, counted from 0.

    Args:
        base: the highest rate.
        iteration: how many are done.
        warmup: iterations over which the rate rises linearly; 0 for none.
        cosine_length: iterations over which it falls to 0 along a cosine; 0 keeps it constant.
    """
    rate = base * min(1.0, (iteration + 1) / warmup) if warmup else base
    if cosine_length:
        rate *= 0.5 + 0.5 * math.cos(math.pi * min(1.0, iteration / cosine_length))
    return rate


def write_csv(path: Path, rows: list[dict]) -> None:
    """Write rows that have the same columns, with a header, whole or not at all."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as stream,
    ):
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def save_samples(before: Tensor, after: Tensor, path: Path, most: int = 8) -> None:
    """Save a grid with images (N, 3, H, W) in [0, 1] in its first row and results in its second."""
    images = torch.cat([before[:most], after[:most]]).float().cpu()
    with atomic_path(path) as temporary:
        save_image(images, temporary, nrow=min(most, len(before)))
