"""How the time of a piece of work grows with its size, whatever machine it runs on."""

import time
from collections.abc import Callable

FEW, MANY = 500, 4000  # sizes of the work


def assert_linear(work: Callable[[int], object]) -> None:
    """Do a piece of work at both sizes, three times in turns; fail where it grows faster than they.

    Seconds of a processor are compared, the fewest of each size, and twice the growth of the sizes
    is allowed. Seconds as such would depend on the machine, and on what else it does.

    Args:
        work: does the work at a size.
    """
    seconds: dict[int, list[float]] = {FEW: [], MANY: []}
    for size in (FEW, MANY) * 3:
        started = time.process_time()
        work(size)
        seconds[size].append(time.process_time() - started)
    growth = min(seconds[MANY]) / min(seconds[FEW])
    assert growth <= 2 * MANY / FEW, seconds
