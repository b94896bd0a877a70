"""Small real encoders as files: one module in torch, as an ONNX graph and as an exported program."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

SIDE = 32


def module() -> nn.Sequential:
    """Images (k, 3, 32, 32) to maps (k, 12, 14, 14)."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 12, 2), nn.Sigmoid()).eval()


def onnx_model(
    extra: Sequence[Any] = (), *, output: str = "maps", domains: Sequence[str] = (), side: int | None = SIDE
) -> onnx.ModelProto:
    """The module as a graph, with further nodes after it."""
    net = module()
    weights = {"w0": net[0].weight, "b0": net[0].bias, "w1": net[2].weight, "b1": net[2].bias}
    nodes = [
        helper.make_node("Conv", ["pixels", "w0", "b0"], ["c0"], strides=[2, 2]),
        helper.make_node("Relu", ["c0"], ["r0"]),
        helper.make_node("Conv", ["r0", "w1", "b1"], ["c1"]),
        helper.make_node("Sigmoid", ["c1"], ["maps"]),
        *extra,
    ]
    shape = ["batch", 3, side or "height", side or "width"]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value.detach().numpy(), name) for name, value in weights.items()],
    )
    sets = [helper.make_opsetid("", 18), *(helper.make_opsetid(name, 1) for name in domains)]
    return helper.make_model(graph, opset_imports=sets, ir_version=9)


def onnx_file(*arguments: Any, **settings: Any) -> bytes:
    return onnx_model(*arguments, **settings).SerializeToString()


def exported_file(net: nn.Module | None = None, side: int = SIDE, *, functional: bool = True) -> bytes:
    """A module as `torch.export.save` writes it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch does inside
        program = torch.export.export(net or module(), (torch.zeros(1, 3, side, side),))
        torch.export.save(program.run_decompositions({}) if functional else program, file)
    return file.getvalue()


def images(count: int = 5, channels: int = 3, size: int = SIDE) -> np.ndarray:
    return np.random.default_rng(1).random((count, channels, size, size), dtype=np.float32)
