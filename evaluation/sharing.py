"""Pairs shared out among the processes of a run (utils/distributed.py), and their scores collected.

Every second the processes tell each other what is new, so that one that has died ends the others
soon, and rank 0 shows the progress of all.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from data.listing import look_up
from data.pairs import Pair
from evaluation.scoring import LeftOut, Scorer, Scores, new_preview, score_pairs
from utils import distributed
from utils.errors import WorkError
from utils.signals import Interrupted

SECONDS_BETWEEN = 1.0  # two times that the processes tell each other what is new
SECONDS_LATE = 0.1  # that a process may come to it because it waits for a score

Result = Scores | LeftOut
News = tuple[int, Result, dict[str, bytes]]  # a pair's number, its result, its previews


def score_together(pairs: Sequence[Pair], scorer: Scorer) -> Iterator[tuple[int, Result]]:
    """Score pairs in all processes of this run, a share in each.

    Args:
        pairs: the same in all of them.
        scorer: of this process. Rank 0's gets the `preview_error` of any, and the previews of all
            in its folder.

    Yields:
        On rank 0 each pair's number in `pairs` and its result, as they come; elsewhere nothing.

    Raises:
        PeerLost: another process has ended.
        Interrupted: what started the processes has been killed.
    """
    if distributed.world_size() == 1:
        yield from enumerate(score_pairs(pairs, scorer))
        return
    order = distributed.broadcast(by_size(pairs) if distributed.is_main() else None)
    own = order[distributed.rank() :: distributed.world_size()]
    results = score_pairs([pairs[number] for number in own], scorer, SECONDS_LATE)
    for new, is_over in now_and_then(own, results):
        news = [] if distributed.is_main() else list(map(with_previews, new))
        told = distributed.gather((news, scorer.preview_error, is_over, distributed.is_orphan()))
        if any(is_orphan for *_, is_orphan in told):
            raise Interrupted(signal.SIGTERM)
        if distributed.is_main():
            yield from new
            for others, preview_error, *_ in told:
                scorer.preview_error = scorer.preview_error or preview_error
                for number, result, previews in others:
                    keep_previews(result, previews, scorer)
                    yield number, result
        if all(is_over for *_, is_over, _ in told):
            return


def by_size(pairs: Sequence[Pair]) -> list[int]:
    """The pairs' numbers, those of the largest files first, so that every share takes as long."""
    sizes = [look_up(pair.gt or pair.enhanced)[1] for pair in pairs]
    return sorted(range(len(pairs)), key=lambda number: -sizes[number])


def now_and_then(
    numbers: Iterable[int], results: Iterable[Result | None]
) -> Iterator[tuple[list[tuple[int, Result]], bool]]:
    """Yield what is new, with its numbers, and whether that is all: every second, and in the end.

    At the end it goes on to yield that nothing is new, for as long as it is asked.
    """
    numbers = iter(numbers)
    new, begun = [], time.monotonic()
    for result in results:
        if result is not None:
            new.append((next(numbers), result))
        if time.monotonic() - begun >= SECONDS_BETWEEN:
            yield new, False
            new, begun = [], time.monotonic()
    while True:
        yield new, True
        new = []


def with_previews(numbered: tuple[int, Result]) -> News:
    """Take a result's previews into memory, since rank 0 may be on another machine."""
    number, result = numbered
    previews = {}
    for version, path in result.previews.items() if isinstance(result, Scores) else ():
        previews[version] = path.read_bytes()
        path.unlink()
    return number, result, previews


def keep_previews(result: Result, previews: dict[str, bytes], scorer: Scorer) -> None:
    """Write another process's previews to this one's folder, unless some could not be written."""
    if not previews:
        return
    result.previews.clear()
    try:
        for version, contents in previews.items() if not scorer.preview_error else ():
            with new_preview(scorer.preview_folder) as file:
                file.write(contents)
            result.previews[version] = Path(file.name)
    except WorkError as error:
        scorer.preview_error = error
