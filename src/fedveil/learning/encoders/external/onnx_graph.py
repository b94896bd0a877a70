"""ONNX graphs, run by onnxruntime: hostile input, of which only known operators on known shapes are accepted.

Refused are custom and unknown operators, control flow, randomness, functions, training information, tensors in other
files, and tensors or a number of nodes beyond the limits. Shapes are those of one image.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.external.operators import ONNX
from fedveil.learning.encoders.external.spec import EncoderSpec

__all__ = ["OnnxGraph"]

MOST_NODES = 20_000
LARGEST_TENSOR = 2**28
"""Numbers in one tensor."""
INSTALL = 'install it: pip install "fedveil[onnx]"'


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A checked graph with its session; one image at a time."""

    session: Any
    input: str
    output: str

    @classmethod
    def load(cls, content: bytes, spec: EncoderSpec) -> tuple["OnnxGraph", EncoderSpec]:
        """Check and load a graph; the spec comes back with what the graph says about its input.

        Raises:
            InvalidValue: onnx or onnxruntime is not installed, or the graph is not acceptable.
        """
        try:
            import onnx
            import onnxruntime
        except ImportError:
            raise InvalidValue(
                f"features are {spec.features!r}", "onnx and onnxruntime are not installed", INSTALL
            ) from None
        try:
            model = onnx.load_model_from_string(content)
        except Exception as error:  # noqa: BLE001 - whatever a damaged file makes the parser raise
            raise _refused(spec, f"it is no ONNX file ({error})") from None
        _check_graph(model, spec)
        spec = _completed(model, spec)
        _check_sizes(onnx, model, spec)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.use_deterministic_compute = True
        try:
            session = onnxruntime.InferenceSession(content, options, providers=_providers(onnxruntime))
        except Exception as error:  # noqa: BLE001 - onnxruntime raises kinds of its own
            raise _refused(spec, f"onnxruntime cannot load it ({error})") from None
        return cls(session, session.get_inputs()[0].name, str(spec.output)), spec

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Run one image (1, channels, size, size)."""
        found = self.session.run([self.output], {self.input: image.numpy()})[0]
        return torch.from_numpy(np.asarray(found))


def _providers(onnxruntime: Any) -> list[str]:
    from fedveil.learning.encoders.device import current

    wanted = ["CPUExecutionProvider"]
    if current().torch.type == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        wanted.insert(0, "CUDAExecutionProvider")
    return wanted


def _check_graph(model: Any, spec: EncoderSpec) -> None:
    """Refuse what cannot be bounded by reading the graph."""
    graph = model.graph
    if model.functions or len(model.training_info) or graph.sparse_initializer:
        raise _refused(spec, "it has functions, training information or sparse tensors")
    domains = {one.domain for one in model.opset_import}
    if domains - {"", "ai.onnx"}:
        raise _refused(spec, f"it uses the operators of {', '.join(sorted(domains - {'', 'ai.onnx'}))[:200]}")
    if len(graph.node) > MOST_NODES:
        raise _refused(spec, f"it has {len(graph.node):,} nodes, more than {MOST_NODES:,}")
    for tensor in _tensors(graph):
        if tensor.data_location == tensor.EXTERNAL or tensor.external_data:
            raise _refused(spec, f"its tensor {tensor.name[:80]!r} is in another file")
        if math.prod(tensor.dims) > LARGEST_TENSOR:
            raise _refused(spec, f"its tensor {tensor.name[:80]!r} has more than {LARGEST_TENSOR:,} numbers")
    for node in graph.node:
        _check_node(node, spec)


def _check_node(node: Any, spec: EncoderSpec) -> None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ONNX:
        raise _refused(spec, f"it uses the operator {node.domain or 'ai.onnx'}.{node.op_type}"[:200])
    flags = {one.name: one.i for one in node.attribute}
    if (node.op_type == "Dropout" and len(node.input) > 2) or flags.get("training_mode"):
        raise _refused(spec, f"its {node.op_type} is in training mode")
    if any(one.graphs or one.HasField("g") for one in node.attribute):
        raise _refused(spec, f"its {node.op_type} holds another graph")


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def _completed(model: Any, spec: EncoderSpec) -> EncoderSpec:
    """The spec with the graph's input shape and its first output; a size that is not fixed must be given."""
    held = {one.name for one in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in held]
    if len(inputs) != 1:
        raise _refused(spec, f"it has {len(inputs)} inputs, and one image has one")
    kind = inputs[0].type.tensor_type
    dims = [one.dim_value or None for one in kind.shape.dim]
    if kind.elem_type != 1 or len(dims) != 4 or dims[0] not in (None, 1):
        raise _refused(
            spec,
            f"its input has the shape {dims} and the type {kind.elem_type}: it must be float32, one image",
        )
    names = [one.name for one in model.graph.output]
    wanted = spec.output or (names[0] if names else "")
    if wanted not in names:
        raise _refused(spec, f"its outputs are {', '.join(names)[:200]}, and the study takes {wanted!r}")
    spec = spec.with_defaults(input_channels=dims[1], input_size=dims[2], output=wanted)
    if dims[1] not in (None, spec.input_channels) or any(
        side not in (None, spec.input_size) for side in dims[2:]
    ):
        raise _refused(
            spec,
            f"its input has the shape {dims}, and the study gives {spec.input_channels} x {spec.input_size} pixels",
        )
    if spec.input_size is None or spec.input_channels is None:
        raise _refused(spec, "it takes images of any size: set model.encoder.input_size and input_channels")
    return spec


def _check_sizes(onnx: Any, model: Any, spec: EncoderSpec) -> None:
    """Infer the shapes for one image, and refuse tensors that are too large or whose size depends on values.

    What the file says of shapes is not used: only what follows from its input and its operators.
    """
    fixed = type(model)()
    fixed.CopyFrom(model)
    held = {one.name for one in fixed.graph.initializer}
    shape = next(one for one in fixed.graph.input if one.name not in held).type.tensor_type.shape
    for dim, value in zip(shape.dim, (1, spec.input_channels, spec.input_size, spec.input_size), strict=True):
        dim.dim_value = value
    fixed.graph.ClearField("value_info")
    for output in fixed.graph.output:
        output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(fixed, data_prop=True)
    except Exception as error:  # noqa: BLE001 - the checker raises kinds of its own
        raise _refused(spec, f"its shapes do not fit together ({error})") from None
    found = {one.name: one.type.tensor_type for one in (*inferred.graph.value_info, *inferred.graph.output)}
    for name in (name for node in fixed.graph.node for name in node.output if name):
        kind: Any = found.get(name)
        known = kind is not None and kind.HasField("shape")
        if not known or not all(one.HasField("dim_value") for one in kind.shape.dim):
            raise _refused(
                spec, f"the shape of its tensor {name[:80]!r} does not follow from the graph alone"
            )
        dims = [one.dim_value for one in kind.shape.dim]
        if min(dims, default=0) < 0 or math.prod(dims) > LARGEST_TENSOR:
            raise _refused(spec, f"its tensor {name[:80]!r} has the shape {dims}")


def _refused(spec: EncoderSpec, why: str) -> InvalidValue:
    return InvalidValue(
        f"the encoder {spec.name} cannot be used: {why[:500]}",
        "a graph holds all of its weights and, of the standard operators, only those that depend on the image alone",
        "export it again in evaluation mode, with its weights in the file, a batch of 1 and images of a fixed size",
    )
