"""What a file computes: its graph, behind the preparation of pixels and before the pooling of what comes out."""

from collections.abc import Callable
from typing import cast

import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.device import Precision, current, halving
from fedveil.learning.encoders.external.exported_graph import ExportedGraph
from fedveil.learning.encoders.external.onnx_graph import OnnxGraph
from fedveil.learning.encoders.external.spec import EncoderSpec, Pooling
from fedveil.learning.encoders.external.timm_module import TimmModule
from fedveil.learning.encoders.extractor import resized

__all__ = ["AT_ONCE", "Runner", "load_runner", "pooled", "pooled_lengths", "vectors"]

Runner = Callable[[torch.Tensor], torch.Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet: what encoders of colour images expect where nothing else is said; grey ones 0.5 and 0.25."""
AT_ONCE = 1
"""Images that an encoder sees. In larger batches a network may round, or compute, by what else is in the batch."""


def vectors(
    runner: Runner, spec: EncoderSpec, precision: Precision = "float32"
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images (k, channels, h, w) in [0, 1] to pooled features (k, dimension)."""
    channels, size = int(spec.input_channels or 1), int(spec.input_size or 1)
    mean = torch.tensor(spec.mean or (MEAN if channels == 3 else (0.5,))).reshape(1, -1, 1, 1)
    std = torch.tensor(spec.std or (STD if channels == 3 else (0.25,))).reshape(1, -1, 1, 1)

    def function(batch: torch.Tensor) -> torch.Tensor:
        pixels = (resized(batch, size).expand(-1, channels, -1, -1) - mean) / std
        found = pooled(halving(runner, pixels, precision), spec.pooling, spec.prefix or 0).cpu()
        if spec.lengths and found.shape != (len(batch), spec.dimension):
            raise InvalidValue(
                f"{spec.features} returns the shape {tuple(found.shape)}",
                f"the study states {spec.dimension:,} features for an image",
                "register the encoder that the study was made with",
            )
        return found

    return function


def load_runner(content: bytes, spec: EncoderSpec) -> tuple[Runner, EncoderSpec]:
    """What runs an encoder's file on the device of this process, and the spec completed by it.

    Raises:
        InvalidValue: the file is not acceptable.
    """
    loaders = {"timm": TimmModule.load, "onnx": OnnxGraph.load, "exported": ExportedGraph.load}
    runner, spec = loaders[spec.kind](content, spec)
    if isinstance(runner, TimmModule | ExportedGraph):
        runner.to(current().torch)
    return cast(Runner, runner), spec


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
