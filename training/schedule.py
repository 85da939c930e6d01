"""The stages of a run, and where in them it stands."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

INITIALISATION, WARM_UP, ROUND, REFINEMENT = "initialisation", "warm-up", "round", "refinement"
STAGES = (INITIALISATION, WARM_UP, ROUND, REFINEMENT)  # in the order in which a run meets them
OF_GUIDANCE = (INITIALISATION, REFINEMENT)  # the others train the enhancer


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
