"""From a network's output for some images to one vector per image."""

import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.external.spec import Pooling

__all__ = ["pooled", "pooled_lengths"]


def pooled(output: torch.Tensor, pooling: Pooling | None, prefix: int) -> torch.Tensor:
    """Pool vectors (k, d), tokens (k, t, d) or maps (k, d, h, w) to (k, d) or, with deviations, (k, 2 d).

    Vectors stay as they are. "class" takes the first token. "mean" averages the tokens after the first ``prefix``
    ones, or the positions of a map; "mean-deviation", the default, adds their standard deviation.
    """
    if output.ndim == 2:
        return output.float()
    output = output.float()
    if output.ndim == 4:
        tokens = output.flatten(2).transpose(1, 2)
        prefix = 0
    elif output.ndim == 3:
        tokens = output
    else:
        raise _wrong(output, "its output must be a vector, tokens or a map")
    if pooling == "class":
        if not prefix or not tokens.shape[1]:
            raise _wrong(output, "it has no class token")
        return tokens[:, 0]
    patches = tokens[:, prefix:]
    if not patches.shape[1]:
        raise _wrong(output, f"after {prefix} prefix tokens nothing is left to average")
    if pooling == "mean":
        return patches.mean(1)
    deviations, means = torch.std_mean(patches, dim=1, correction=0)
    return torch.cat([means, deviations], 1)


def pooled_lengths(output: torch.Tensor, pooling: Pooling | None, prefix: int) -> tuple[int, ...]:
    """Lengths of the parts of a pooled vector: means and deviations are scaled apart by a learner."""
    length = pooled(output, pooling, prefix).shape[1]
    parts = 2 if output.ndim > 2 and pooling in (None, "mean-deviation") else 1
    return (length // parts,) * parts


def _wrong(output: torch.Tensor, rule: str) -> InvalidValue:
    return InvalidValue(
        f"the encoder returns the shape {tuple(output.shape)}",
        rule,
        "set model.encoder.pooling, prefix, layer or output to what the encoder returns",
    )
