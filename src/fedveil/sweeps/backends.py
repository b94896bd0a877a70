"""Where the settings of a sweep run: in processes of this machine, or on a backend of joblib, such as Dask."""

import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import joblib

from fedveil.errors import InvalidValue

__all__ = ["Backend", "in_processes", "memory", "on_backend", "reach"]

T = TypeVar("T")
R = TypeVar("R")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
PER_WORKER = 4
"""Items per worker that a backend gets together, if it returns results only together."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend of joblib that was reached.

    Attributes:
        pool: what runs the items.
        together: how many items it gets together; None if it returns results one by one.
    """

    pool: Any
    together: int | None


def reach(backend: str, workers: int | None = None) -> Backend:
    """A backend, before anything is written or computed.

    Args:
        backend: its name in joblib, such as "loky" or "dask"; "dask:ADDRESS" names the scheduler. Others, such as
            Ray's, have to be registered with joblib before.
        workers: at a time; by default as many as the backend has.

    Raises:
        InvalidValue: joblib knows no such backend, or it cannot be reached.
    """
    name, colon, address = backend.partition(":")
    if colon and (name != "dask" or not address):
        raise InvalidValue(
            f"the sweep's backend is {backend[:80]!r}",
            "only dask has an address, that of its scheduler",
            "name loky, dask:ADDRESS, or a backend that was registered with joblib",
        )
    where = {"scheduler_host": address} if address else {}
    try:
        with joblib.parallel_config(backend=name, **where):
            pool = joblib.Parallel(n_jobs=workers or -1)
            count = max(1, joblib.effective_n_jobs(workers or -1))
            streams = bool(getattr(pool._backend, "supports_return_generator", False))
            if streams:
                pool = joblib.Parallel(n_jobs=workers or -1, return_as="generator_unordered")
    except (ValueError, KeyError, OSError, TypeError, ImportError) as error:
        raise InvalidValue(
            f"the sweep's backend is {backend[:80]!r}",
            f"joblib cannot use it ({' '.join(str(error).split()):.300})",
            "name loky, dask:ADDRESS, or a backend that was registered with joblib",
        ) from None
    return Backend(pool, None if streams else PER_WORKER * count)


def on_backend(work: Callable[[T], R], items: Sequence[T], backend: Backend) -> Iterator[R]:
    """Results of `work`, which has to be picklable, as they finish, in any order."""
    size = backend.together or max(1, len(items))
    for start in range(0, len(items), size):
        yield from backend.pool(joblib.delayed(work)(item) for item in items[start : start + size])


def in_processes(work: Callable[[T], R], items: Sequence[T], count: int, scratch: Path) -> Iterator[R]:
    """Results of `work`, which has to be picklable, as they finish, in any order, from `count` processes.

    They end whenever this process does, and then remove the folder `scratch`.
    """
    with _one_thread_each():
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(count, spawn, _begin, (scratch,)) as pool:
            waiting = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(waiting):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


def _begin(scratch: Path) -> None:
    threading.Thread(target=_end_with_parent, args=(scratch,), daemon=True).start()


def _end_with_parent(scratch: Path) -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        # Other workers, and this one's own training, may still be writing: retry until the folder is gone, for at
        # most a second.
        for _ in range(100):
            shutil.rmtree(scratch, ignore_errors=True)
            if not scratch.exists():
                break
            time.sleep(0.01)
        os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Worker processes use one thread each: together they use the whole machine."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def memory() -> str | None:
    """A file system in memory, if there is one: ledgers are synced at every charge, and are deleted afterwards."""
    folder = Path("/dev/shm")
    return str(folder) if folder.is_dir() and os.access(folder, os.W_OK) else None
