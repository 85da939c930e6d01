"""How many iterations a run will have, and how long and how much disk they will take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from training.schedule import INITIALISATION, OF_GUIDANCE, REFINEMENT, Schedule

TOLD_AFTER = 10  # iterations of a kind, which tell its pace
REMEMBERED = 100  # iterations that the pace is the mean of


@dataclass(frozen=True)
class Plan:
    """The iterations of a whole run, as far as its options tell them.

    Rounds that are extended and enhancers that are replaced (docs/method.md 7) shift the rounds,
    and extended guidance stages add to it.

    Attributes:
        enhancer: iterations of the enhancer, warm-up and rounds together.
        initialisation: iterations of the guidance before them; 0 for RAVE.
        refinement: iterations of the guidance after each round but the last; 0 for RAVE.
        refinements: how often it is refined.
    """

    enhancer: int
    initialisation: int = 0
    refinement: int = 0
    refinements: int = 0

    @classmethod
    def of(
        cls,
        enhancer: int,
        warm_up: int,
        round_iters: int,
        initialisation: int = 0,
        refinement: int = 0,
    ) -> Plan:
        """Plan a run of so many enhancer iterations, `warm_up` of them before the rounds."""
        rounds = math.ceil(max(enhancer - warm_up, 0) / round_iters)
        refinements = max(rounds - 1, 0) if refinement else 0
        return cls(enhancer, initialisation, refinement, refinements)

    @property
    def guidance(self) -> int:
        """Iterations of the guidance."""
        return self.initialisation + self.refinement * self.refinements

    @property
    def total(self) -> int:
        """Iterations of the enhancer and the guidance."""
        return self.enhancer + self.guidance

    def done(self, schedule: Schedule) -> tuple[int, int]:
        """Iterations of the enhancer and of the guidance that a run has behind it.

        Stages of the guidance that are over count as planned.
        """
        if schedule.stage in ("", INITIALISATION):
            return 0, schedule.done
        guidance = self.initialisation + self.refinement * max(schedule.round - 1, 0)
        return schedule.iteration, guidance + schedule.done * (schedule.stage == REFINEMENT)


@dataclass
class Pace:
    """How long the iterations of this process take.

    Attributes:
        seconds: of the last iterations, for the guidance (True) and the enhancer (False).
        counted: how many there were.
    """

    seconds: dict[bool, deque[float]] = field(
        default_factory=lambda: {kind: deque(maxlen=REMEMBERED) for kind in (False, True)}
    )
    counted: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})
    _last: float | None = None

    def pause(self) -> None:
        """Leave out the time until the next iteration's end, such as the start of a stage."""
        self._last = None

    def count(self, stage: str) -> bool:
        """Count an iteration that has ended; return whether the pace of its kind is known now."""
        kind, now = stage in OF_GUIDANCE, time.monotonic()
        if self._last is not None:
            self.seconds[kind].append(now - self._last)
        self._last = now
        self.counted[kind] += 1
        return self.counted[kind] == TOLD_AFTER

    def seconds_left(self, plan: Plan, schedule: Schedule) -> float | None:
        """Seconds until the run's end; None before the enhancer's pace is known.

        A guidance whose pace is not known counts as slow as the enhancer.
        """
        enhancer = _mean(self.seconds[False])
        if enhancer is None:
            return None
        guidance = _mean(self.seconds[True])
        done = plan.done(schedule)
        whole = plan.enhancer, plan.guidance
        left = [max(of - have, 0) for of, have in zip(whole, done, strict=True)]
        return left[0] * enhancer + left[1] * (enhancer if guidance is None else guidance)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def clock(seconds: float) -> str:
    """The day and time in so many seconds: "Fri 27 Nov 14:05"."""
    return f"{datetime.now() + timedelta(seconds=seconds):%a %d %b %H:%M}"


def cost_sentence(plan: Plan, schedule: Schedule, pace: Pace) -> str:
    """Say how many iterations a run has and how long they will take, as far as that is known.

    Args:
        plan: of the run.
        schedule: where it stands.
        pace: of this process.
    """
    iterations = f"{plan.enhancer:,} iterations of the enhancer"
    if plan.guidance:
        iterations += f" and {plan.guidance:,} of the guidance"
    left = pace.seconds_left(plan, schedule)
    if left is None:
        each = _mean(pace.seconds[True]) or 0.0
        hours = f"{each:.2f} s for each of the guidance's, the enhancer's are yet to be timed"
    else:
        hours = f"about {left / 3600:.1f} hours from here, until {clock(left)}"
    return f"this run has {iterations}, {sum(plan.done(schedule)):,} of them done: {hours}"
