"""How the time of a piece of work grows with its size, whatever machine it runs on."""

import time
from collections.abc import Callable

FEW, MANY = 500, 4000  # sizes of the work


def assert_linear(work: Callable[[int], object]) -> None:
    """Do work of both sizes in turn; fail if its time grows more than twice as fast as the size.

    Seconds of a processor are compared, of equally much work: once MANY, and as often FEW as makes
    as many. Seconds as such would depend on the machine, and on what else it does; the tests that
    are marked long bound them.

    Args:
        work: does the work of a size.
    """
    growths: list[float] = []
    while not growths or growths[-1] > 2:  # else noise, perhaps: tried once more
        assert len(growths) < 3, growths
        started = time.process_time()
        for _ in range(MANY // FEW):
            work(FEW)
        between = time.process_time()
        work(MANY)
        growths.append((time.process_time() - between) / (between - started))
