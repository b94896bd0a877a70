"""Outputs of a network for made-up images: whether two builds of it compute the same."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

__all__ = ["made_up", "same_outputs"]

_GOLDEN = 0.618033988749895


def made_up(count: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Images (count, *shape) in [0, 1), always the same: multiples of the golden ratio, without their whole parts."""
    numbers = np.arange(1, count * int(np.prod(shape)) + 1, dtype=np.float64)
    return (numbers * _GOLDEN % 1).astype(np.float32).reshape(count, *shape)


def same_outputs(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two networks of the same layers compute the same in evaluation mode, if trained values are the same.

    Trained values are moved away from where they are, since zeros in a head hide what is below. Modes and parameters
    of ``one`` are restored, ``other`` is left with its trained values. Networks that cannot be run count as the same:
    the trial refuses them.
    """
    kept = [(p, p.data) for p in one.parameters() if p.requires_grad]
    trained = dict(other.named_parameters())
    modes = {module: module.training for module in one.modules()}
    images = torch.from_numpy(made_up(4, shape))
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            torch.manual_seed(0)
            for name, parameter in one.named_parameters():
                if parameter.requires_grad:
                    moved = parameter.data + 0.1 * torch.randn(parameter.shape)
                    parameter.data, trained[name].data = moved, moved
            found = [_outputs(module, images) for module in (one, other)]
    except Exception:  # noqa: BLE001 - whatever a network raises, it is the trial that says so
        return True
    finally:
        for parameter, data in kept:
            parameter.data = data
        for module, mode in modes.items():
            module.training = mode
    return len(found[0]) == len(found[1]) and all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()), equal_nan=True)
        for a, b in zip(*found, strict=True)
    )


def _outputs(module: nn.Module, images: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    return [x.double() for x in tree_leaves(module.eval()(images)) if isinstance(x, Tensor)]
