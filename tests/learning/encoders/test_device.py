"""Where encoders run and in which precision: what can be told without an accelerator."""

import numpy as np
import pytest
import torch

from fedveil.errors import InvalidValue, StudyError
from fedveil.learning.encoders import feature_extractor
from fedveil.learning.encoders.device import Device, current, halving, use
from fedveil.study import Study


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match=r"finds no CUDA device here.*--device auto"):
        Device.of(name)


@pytest.mark.parametrize("name", ["tpu", "", "cpu:1", "cuda:x", "cuda:-1", "mps:0"])
def test_a_device_of_another_kind_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="it must be auto, cpu, cuda, cuda:NUMBER or mps"):
        Device.of(name)


def test_auto_finds_one() -> None:
    assert Device.of("auto").torch.type in ("cpu", "cuda", "mps")
    before = use(Device.of("auto"))
    assert current() == Device.of("auto")
    use(before)


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    """A device with room for three images, as far as PyTorch's own error tells."""
    seen = []

    def network(batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch * 2

    batch = torch.rand(16, 4)
    assert torch.equal(halving(network, batch), batch * 2)
    assert max(seen) == 16
    assert seen.count(2) == 8

    def full(batch: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InvalidValue, match=r"does not suffice for one image.*--device cpu"):
        halving(full, batch)


def test_bfloat16_changes_an_encoder_a_little_and_its_key() -> None:
    images = np.random.default_rng(0).random((3, 1, 32, 32), dtype=np.float32)
    exact, narrow = (
        feature_extractor("efficientnet-lite0", 32, 1, precision=precision)
        for precision in ("float32", "bfloat16")
    )
    assert exact.key != narrow.key
    one, other = exact(images), narrow(images)
    assert other.dtype == np.float32
    assert not np.array_equal(one, other)
    np.testing.assert_allclose(one, other, atol=0.05 * np.abs(one).max())


def test_networks_are_trained_in_float32() -> None:
    with pytest.raises(StudyError, match="contributions are clipped"):
        Study.parse('[model]\nnetwork = "cnn"\n[training]\nprecision = "bfloat16"')
