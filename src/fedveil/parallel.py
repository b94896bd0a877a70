"""Work in threads: long vectors in blocks, and reading ahead of computing."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["BLOCK", "ahead", "cores", "in_blocks"]

T = TypeVar("T")
R = TypeVar("R")
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


def ahead(read: Callable[[T], R], batches: Sequence[T]) -> Iterator[R]:
    """What `read` makes of each batch, in order, read while the caller uses the one before; raises what it raises."""
    if not batches:
        return
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(read, batches[0])
        for following in batches[1:]:
            found, pending = pending.result(), reader.submit(read, following)
            yield found
        yield pending.result()
