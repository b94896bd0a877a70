"""The flat vector."""

import numpy as np
import pytest
import torch
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import dimension, flatten_parameters, load_flat, trainable_parameters
from fedveil.learning.networks import fix_batch_norm


def model() -> nn.Sequential:
    """A frozen layer, a shared one, and buffers."""
    layers = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    layers[0].requires_grad_(False)
    layers[3].weight = layers[1].weight
    return fix_batch_norm(layers)  # type: ignore[return-value]


def test_vector_goes_there_and_back() -> None:
    net = model()
    assert list(trainable_parameters(net)) == ["1.weight", "1.bias", "2.weight", "2.bias"]
    vector = flatten_parameters(net)
    assert vector.shape == (dimension(net),) == (10,)
    load_flat(net, np.arange(10.0))
    assert flatten_parameters(net).tolist() == list(range(10))
    assert net[3].weight.tolist() == [[0, 1], [2, 3]]
    load_flat(net, vector)
    assert torch.equal(flatten_parameters(net), vector)


def test_no_unclipped_state_leaves_in_the_vector() -> None:
    net = model()
    before = flatten_parameters(net)
    net[2].running_mean.fill_(7)
    net[0].weight.data.fill_(7)
    assert torch.equal(flatten_parameters(net), before)


@pytest.mark.parametrize("size", [0, 9, 11])
def test_vector_of_another_network_is_refused(size: int) -> None:
    with pytest.raises(InvalidValue, match="trains 10 numbers"):
        load_flat(model(), torch.zeros(size))
