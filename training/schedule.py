"""The stages of a run, and where in them it stands."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

INITIALISATION, WARM_UP, ROUND, REFINEMENT = "initialisation", "warm-up", "round", "refinement"
STAGES = (INITIALISATION, WARM_UP, ROUND, REFINEMENT)  # in the order in which a run meets them
LEVELS_KEPT = 2  # a refinement sees the best enhancers of so many rounds
OF_GUIDANCE, OF_ENHANCER = (INITIALISATION, REFINEMENT), (WARM_UP, ROUND)  # what they train


@dataclass
class Schedule:
    """Where a run stands; iterations are those done."""

    stage: str = ""
    round: int = 0  # 0 before the first round
    done: int = 0  # iterations of this stage
    length: int = 0  # iterations that this stage will have
    iteration: int = 0  # enhancer iterations of the whole run
    restarts: int = 0  # collapsed enhancers that were replaced
    since_restart: int = 0  # warm-up iterations of the present enhancer
    scores: list[float] = field(default_factory=list)  # the last ones of this stage
    best_score: float = -math.inf
    unjudged: dict[str, float] = field(default_factory=dict)  # terms at a limit before any display
    log_rows: int = 0
    seconds: float = 0.0  # spent on iterations since the run began

    @property
    def title(self) -> str:
        """The stage and its round: "warm-up", "round 2"."""
        return f"{self.stage} {self.round}" if self.round else self.stage

    def where(self) -> str:
        """The stage and how many of its iterations are done, in words."""
        return f"iteration {self.done} of {self.title}" if self.stage else "the beginning"

    def is_behind(self, stage: str, number: int) -> bool:
        """Whether a resumed run has this stage of this round behind it."""
        place = (self.round, STAGES.index(self.stage) if self.stage else -1)
        return (number, STAGES.index(stage)) < place

    def done_in(self, stage: str, number: int) -> int:
        """Iterations of this stage of this round that a resumed run has behind it."""
        return self.done if (self.stage, self.round) == (stage, number) else 0

    def snapshots(self) -> list[str]:
        """The files in a run's folder that the stage's best weights go to."""
        if self.stage in OF_GUIDANCE:
            number = f"round{self.round}" if self.round else "epoch0"
            return [f"snapshots_guidance/best_guidance_learner_{number}.pth"]
        folder = "snapshots_model"
        return [f"{folder}/best_model_round{self.round}.pth", f"{folder}/iter_{self.iteration}.pth"]

    def begin(self, stage: str, round_: int, length: int) -> None:
        """Start a stage, unless the run was resumed in the midst of it."""
        if (self.stage, self.round) != (stage, round_):
            self.stage, self.round, self.done, self.length = stage, round_, 0, length
            self.forget_scores()

    def forget_scores(self) -> None:
        """Judge the learner afresh."""
        self.scores, self.best_score, self.unjudged = [], -math.inf, {}

    def check(self, stages: Collection[str]) -> None:
        """Check a schedule that was saved.

        Args:
            stages: that the run may be in.

        Raises:
            ValueError: it can be no run's.
        """
        if self.stage and self.stage not in stages:
            raise ValueError(f"schedule.stage is {self.stage!r}")
        counts = ("round", "done", "length", "iteration", "restarts", "since_restart", "log_rows")
        for name in counts:
            if getattr(self, name) < 0:
                raise ValueError(f"schedule.{name} is negative")
