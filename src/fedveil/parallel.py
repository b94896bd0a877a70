"""Long vectors in blocks, by as many threads as this process may use cores."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

__all__ = ["BLOCK", "cores", "in_blocks"]

BLOCK = 1 << 18
"""Numbers per block: shorter vectors are handled in the calling thread."""


def cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_blocks(size: int, work: Callable[[slice], object]) -> None:
    """Call `work` for every block of a vector of `size` numbers; which thread does it must not affect the result.

    Raises whatever a block raised first.
    """
    parts = [slice(start, min(start + BLOCK, size)) for start in range(0, size, BLOCK)]
    workers = min(cores(), len(parts))
    if workers <= 1:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, parts))
