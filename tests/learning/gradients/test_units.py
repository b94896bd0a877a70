"""Order of units, micro-batches, Poisson samples."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import poisson_sample
from fedveil.learning.gradients.units import UnitBatch, micro_batches

codes = st.lists(st.integers(0, 6), min_size=1, max_size=30).map(torch.tensor)


@given(codes)
@settings(deadline=None)
def test_batch_keeps_units_together_and_few_images_first(units: torch.Tensor) -> None:
    batch = UnitBatch(units)
    ordered = units[batch.order]
    assert sorted(batch.order.tolist()) == list(range(len(units)))
    assert len(torch.unique_consecutive(ordered)) == batch.units == len(units.unique())
    assert batch.counts.tolist() == sorted(batch.counts.tolist())
    covered = [i for b in batch.buckets for i in range(b.first_image, b.last_image)]
    assert covered == list(range(len(units)))
    for bucket in batch.buckets:
        rows = bucket.rows(ordered)
        assert (rows == rows[:, :1]).all()
    per_unit = torch.arange(batch.units)
    assert torch.equal(batch.sum(torch.ones(len(units))), batch.counts.float())
    assert torch.equal(batch.repeat(per_unit), torch.repeat_interleave(per_unit, batch.counts))


@given(codes, st.integers(1, 12))
@settings(deadline=None)
def test_micro_batches_never_cut_a_unit(units: torch.Tensor, limit: int) -> None:
    parts = list(micro_batches(units, limit))
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(units)))
    for i, part in enumerate(parts):
        mine = set(units[part].tolist())
        others = {u for j, other in enumerate(parts) if j != i for u in units[other].tolist()}
        assert not mine & others
        assert len(part) <= limit or len(mine) == 1


def test_empty_batch_has_no_micro_batches() -> None:
    assert list(micro_batches(torch.zeros(0, dtype=torch.long), 4)) == []
    assert list(micro_batches(torch.zeros(0, dtype=torch.long), None)) == []


def test_sampling_executed_is_sampling_accounted() -> None:
    # Poisson sampling: every unit on its own, so sizes are binomial and pairs of units independent.
    generator = np.random.default_rng(5)
    samples = [poisson_sample(40, 0.3, generator) for _ in range(4000)]
    members = np.zeros((4000, 40))
    for i, sample in enumerate(samples):
        members[i, sample] = 1
    sizes = members.sum(1)
    assert abs(sizes.mean() - 12) < 4 * np.sqrt(40 * 0.3 * 0.7 / 4000)
    assert abs(sizes.var() / (40 * 0.3 * 0.7) - 1) < 0.12  # a shuffled batch of fixed size has no variance
    assert np.abs(members.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 4000)
    correlation = np.corrcoef(members.T) - np.eye(40)
    assert np.abs(correlation).max() < 0.1


def test_sample_may_be_empty_or_everyone() -> None:
    generator = np.random.default_rng(1)
    assert poisson_sample(3, 1e-9, generator).tolist() == []
    assert poisson_sample(3, 1.0, generator).tolist() == [0, 1, 2]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(InvalidValue, match="sampling_rate"):
        poisson_sample(3, rate, np.random.default_rng(1))
