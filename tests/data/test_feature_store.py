"""The feature store with several views, several processes, kills and full disks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tests.data.features import one_view

from fedveil.data import FeatureCache
from fedveil.data.cache import StoredRows

DIGESTS = [f"{number:032x}" for number in range(1, 61)]
WIDTH = 40
VIEWS = ("plain", "degraded")


def features(view, indices):
    return np.array([[1000 * view + int(DIGESTS[index], 16)] * WIDTH for index in indices], np.float32)


def fill(folder, digests=DIGESTS, keys=VIEWS):
    """What a run does; returns the rows of each view, and what was computed."""
    asked = []

    def compute(indices, which):
        asked.append((list(which), [digests[index] for index in indices]))
        return [
            features(VIEWS.index(keys[view]), [DIGESTS.index(digests[i]) for i in indices]) for view in which
        ]

    return FeatureCache(folder).views(keys, digests, compute), asked


def check(stores, digests=DIGESTS):
    for view, store in enumerate(stores):
        assert isinstance(store, StoredRows)
        assert store.shape == (len(digests), WIDTH)
        expected = features(view, [DIGESTS.index(digest) for digest in digests])
        np.testing.assert_array_equal(np.asarray(store), expected)
        some = np.random.default_rng(0).permutation(len(digests))[:7]
        np.testing.assert_array_equal(store[some], expected[some])


def test_an_image_is_asked_for_once_for_all_views(tmp_path):
    stores, asked = fill(tmp_path)
    check(stores)
    assert asked == [([0, 1], DIGESTS)]
    stores, asked = fill(tmp_path, DIGESTS[::-1])
    check(stores, DIGESTS[::-1])
    assert asked == []


def test_only_the_views_that_are_missing_are_computed(tmp_path, monkeypatch):
    monkeypatch.setattr("fedveil.data.cache.ROWS_PER_FILE", 25)
    fill(tmp_path, DIGESTS[:20], keys=("plain",))
    fill(tmp_path, DIGESTS[10:30], keys=("degraded",))
    stores, asked = fill(tmp_path)
    check(stores)
    computed = {(view, digest) for which, batch in asked for view in which for digest in batch}
    assert computed == {(0, one) for one in DIGESTS[20:]} | {(1, one) for one in DIGESTS[:10] + DIGESTS[30:]}
    assert all(len(batch) <= 25 for _, batch in asked)
    assert sorted(one for _, batch in asked for one in batch) == sorted(DIGESTS[:10] + DIGESTS[20:])


def test_rows_are_mapped_and_their_pages_given_back(tmp_path):
    """After all rows were read, the process does not hold them."""
    digests = [f"{number:032x}" for number in range(1, 5001)]
    cache = FeatureCache(tmp_path)
    store = one_view(cache, "key", digests, lambda indices: np.zeros((len(indices), 2000), np.float32))
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc/self/smaps")
    for start in range(0, 5000, 500):
        store[start : start + 500]
    files = [path.name for path in tmp_path.rglob("*.npy")]
    assert len(files) == 1 + 5000 // 2048
    resident, mapped = 0, False
    with Path("/proc/self/smaps").open() as lines:
        for line in lines:
            if "-" in line.split(" ")[0]:
                mapped = any(name in line for name in files)
            elif mapped and line.startswith("Rss:"):
                resident += int(line.split()[1])
    assert resident < 4000, f"{resident} KiB of 40 MB"


WORKER = """
import sys, time
import numpy as np
import fedveil.data.cache as cache
from tests.data.test_feature_store import DIGESTS, features
cache.ROWS_PER_FILE = 3

def compute(indices, which):
    time.sleep({pause})
    print("batch", flush=True)
    return [features(view, indices) for view in which]

cache.FeatureCache({folder!r}).views(("plain", "degraded"), DIGESTS, compute)
"""


def worker(folder, pause, **options):
    code = WORKER.format(folder=folder, pause=pause)
    if "limit" in options:
        code = (
            f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({options['limit']},) * 2)\n" + code
        )
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from pathlib import Path\n" + code.replace(f"{folder!r}", f"Path({str(folder)!r})"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fill_one_store(tmp_path):
    both = [worker(tmp_path, 0.01) for _ in range(2)]
    for one in both:
        _, errors = one.communicate(timeout=60)
        assert one.returncode == 0, errors
    stores, asked = fill(tmp_path)
    check(stores)
    assert asked == []


def test_a_kill_at_any_moment_leaves_whole_files(tmp_path):
    """Killed as it works, twice; what was stored is used, and nothing is wrong."""
    for batches in (2, 3):
        one = worker(tmp_path, 0.005)
        for _ in range(batches):
            assert one.stdout.readline()
        one.send_signal(signal.SIGKILL)
        one.communicate(timeout=60)
    stores, asked = fill(tmp_path)
    check(stores)
    computed = sum(len(batch) for _, batch in asked)
    assert computed <= len(DIGESTS) - 3 * 3


def test_a_disk_that_fills_up_costs_the_store_but_not_the_run(tmp_path):
    """A file may not grow beyond 300 bytes: the system itself refuses."""
    one = worker(tmp_path, 0, limit=300)
    _, errors = one.communicate(timeout=60)
    assert one.returncode == 0, errors
    assert "features are not stored for the next run" in errors
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_unfinished_files_of_dead_processes_are_removed(tmp_path):
    fill(tmp_path)
    folder = next(path for path in tmp_path.iterdir() if path.is_dir())
    old, new = folder / "old.tmp", folder / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"half")
    long_ago = time.time() - 2 * 86_400
    os.utime(old, (long_ago, long_ago))
    fill(tmp_path)
    assert not old.exists()
    assert new.exists()
