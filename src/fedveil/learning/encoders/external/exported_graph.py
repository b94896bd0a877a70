"""Programs saved by `torch.export.save`, read without pickle and interpreted operator by operator.

PyTorch's own loader unpickles sample inputs and evaluates expressions of shapes. Here only the graph, which is JSON,
and plain weights are read from the archive, and only functional ATen operators without randomness are called. Shapes
are fixed and the batch is 1. Kept are no state and no inputs: what an image becomes depends on that image alone.
"""

import io
import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from fedveil.errors import InvalidValue
from fedveil.learning.encoders.external.operators import ATEN
from fedveil.learning.encoders.external.spec import EncoderSpec

__all__ = ["ExportedGraph"]

CHECKS = frozenset({"_assert_tensor_metadata"})
"""Operators that compute nothing; shapes are checked here."""
MOST_NODES = 20_000
LARGEST_TENSOR = 2**28
_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""`torch._export.serde.schema.ScalarType`."""
_FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}


@dataclass(frozen=True, slots=True)
class _Step:
    """One call: an operator, its arguments as JSON, and the names of its results."""

    operator: Any
    inputs: tuple[tuple[str, bool, Mapping[str, Any]], ...]
    outputs: tuple[str, ...]
    is_list: bool


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """A checked program with its weights; one image at a time."""

    steps: tuple[_Step, ...]
    weights: dict[str, torch.Tensor]
    input: str
    output: str
    shapes: Mapping[str, tuple[int, ...]]
    last_use: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, content: bytes, spec: EncoderSpec) -> tuple["ExportedGraph", EncoderSpec]:
        """Check and load a program; the spec comes back with the shape of its input.

        Raises:
            InvalidValue: the file is damaged, or the program is not acceptable.
        """
        try:
            return _load(content, spec)
        except InvalidValue:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a damaged archive leads to
            raise _refused(spec, f"the file is damaged ({type(error).__name__}: {error})") from None

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        for name, value in self.weights.items():
            self.weights[name] = value.to(device)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Run one image (1, channels, size, size).

        Raises:
            InvalidValue: a result has another shape than the program states.
        """
        values = {self.input: image}
        for number, step in enumerate(self.steps):
            positional: list[Any] = []
            keywords: dict[str, Any] = {}
            for name, keyword, argument in step.inputs:
                value = self._value(argument, values, image.device)
                if keyword:
                    keywords[name] = value
                else:
                    positional.append(value)
            found = step.operator(*positional, **keywords)
            results = list(found) if step.is_list or isinstance(found, tuple) else [found]
            for name, result in zip(step.outputs, results, strict=False):
                if tuple(result.shape) != self.shapes[name]:
                    raise _stopped(
                        f"{name[:80]!r} has the shape {tuple(result.shape)}, not {self.shapes[name]}"
                    )
                values[name] = result
            for name in [name for name in values if self.last_use.get(name, -1) == number]:
                del values[name]
        return values[self.output]

    def _value(self, argument: Mapping[str, Any], values: Mapping[str, Any], device: torch.device) -> Any:
        """The value of an argument; names are looked up among earlier results and weights."""
        ((kind, value),) = argument.items()
        match kind:
            case "as_tensor":
                return self._named(value["name"], values)
            case "as_tensors":
                return [self._named(one["name"], values) for one in value]
            case "as_optional_tensors":
                return [
                    self._named(one["as_tensor"]["name"], values) if "as_tensor" in one else None
                    for one in value
                ]
            case "as_optional_tensor":
                return self._named(value["as_tensor"]["name"], values) if "as_tensor" in value else None
            case "as_scalar_type":
                return _TYPES[value]
            case "as_memory_format":
                return _FORMATS[value]
            case "as_layout":
                return torch.strided
            case "as_device":
                return device
            case "as_none":
                return None
        return value

    def _named(self, name: str, values: Mapping[str, Any]) -> Any:
        return values[name] if name in values else self.weights[name]


_KINDS = {
    "as_tensor": {"Tensor"},
    "as_tensors": {"List[Tensor]", "List[Optional[Tensor]]"},
    "as_optional_tensors": {"List[Optional[Tensor]]"},
    "as_optional_tensor": {"Tensor"},
    "as_int": {"int", "float", "number", "Tensor"},
    "as_ints": {"List[int]", "List[float]"},
    "as_float": {"float", "number", "Tensor"},
    "as_floats": {"List[float]"},
    "as_bool": {"bool", "number", "Tensor"},
    "as_bools": {"List[bool]"},
    "as_string": {"str"},
    "as_scalar_type": {"ScalarType"},
    "as_memory_format": {"MemoryFormat"},
    "as_layout": {"Layout"},
    "as_device": {"Device"},
}
"""Types of an operator's schema that an argument of each kind may stand for: a tensor in place of a number would make
shapes depend on values. The other way round is common."""


def _load(content: bytes, spec: EncoderSpec) -> tuple[ExportedGraph, EncoderSpec]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {one.filename: one.file_size for one in archive.infolist()}
        if sum(sizes.values()) > 2 * len(content) + 2**20:
            raise _refused(spec, "its archive is compressed")
        models = [name for name in sizes if name.split("/")[1:2] == ["models"]]
        if len(models) != 1:
            raise _refused(spec, f"it holds {len(models)} programs")
        program = json.loads(archive.read(models[0]))
        graph = program["graph_module"]["graph"]
        names, input_, output = _signature(program["graph_module"]["signature"], spec)
        weights = _weights(
            archive, models[0].split("/")[0], models[0].split("/")[-1][: -len(".json")], names, spec
        )
    values = graph["tensor_values"]
    shapes = {name: _shape(f"tensor {name[:80]!r}", value["sizes"], spec) for name, value in values.items()}
    if len(graph["nodes"]) > MOST_NODES:
        raise _refused(spec, f"it has {len(graph['nodes']):,} operators, more than {MOST_NODES:,}")
    steps = tuple(step for node in graph["nodes"] if (step := _step(node, spec)) is not None)
    _check_masks(steps, {name: one["dtype"] for name, one in values.items()}, spec)
    held = {name: tuple(value.shape) for name, value in weights.items()}
    _check_reads(steps, shapes | held, spec)
    last = {name: number for number, step in enumerate(steps) for name in _used(step)}
    made = {name for step in steps for name in step.outputs}
    last = {name: number for name, number in last.items() if name in made and name != output}
    if missing := made - shapes.keys():
        raise _refused(spec, f"it states no shape of {min(missing)[:80]!r}")
    return ExportedGraph(steps, weights, input_, output, shapes, last), _completed(values[input_], spec)


def _shape(what: str, sizes: Iterable[Mapping[str, Any]], spec: EncoderSpec) -> tuple[int, ...]:
    """Fixed sides, within the limit."""
    sides = tuple(one.get("as_int") for one in sizes)
    fixed = [side for side in sides if type(side) is int and side >= 0]
    if len(fixed) < len(sides) or math.prod(fixed) > LARGEST_TENSOR:
        raise _refused(spec, f"its {what} has the shape {sides}: shapes are fixed and limited")
    return tuple(fixed)


def _signature(signature: Mapping[str, Any], spec: EncoderSpec) -> tuple[dict[str, str], str, str]:
    """Stored names of weights by their names in the graph, the graph's one input and its output."""
    names, inputs, outputs = {}, [], []
    for one in signature["input_specs"]:
        ((kind, value),) = one.items()
        if kind == "user_input":
            inputs.append(value["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            key = {"parameter": "parameter_name", "buffer": "buffer_name"}.get(kind, "tensor_constant_name")
            names[value["arg"]["name"]] = value[key]
        else:
            raise _refused(spec, f"it takes a {kind}")
    for one in signature["output_specs"]:
        ((kind, value),) = one.items()
        if kind != "user_output":
            raise _refused(spec, f"it has a {kind}: it changes what it computes with")
        outputs.append(value["arg"]["as_tensor"]["name"])
    if len(inputs) != 1 or not outputs:
        raise _refused(spec, f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    if spec.output is not None and spec.output not in outputs:
        raise _refused(
            spec, f"its outputs are {', '.join(outputs)[:200]}, and the study takes {spec.output!r}"
        )
    return names, inputs[0], spec.output or outputs[0]


def _weights(
    archive: zipfile.ZipFile, root: str, model: str, names: Mapping[str, str], spec: EncoderSpec
) -> dict[str, torch.Tensor]:
    """Weights by their names in the graph; none may be pickled."""
    found: dict[str, torch.Tensor] = {}
    for folder, file in (("weights", "weights_config"), ("constants", "constants_config")):
        config = json.loads(archive.read(f"{root}/data/{folder}/{model}_{file}.json"))["config"]
        for name, entry in config.items():
            meta = entry.get("tensor_meta")
            if entry.get("use_pickle") is not False or not meta:
                raise _refused(spec, f"its {name[:80]!r} is pickled, which could run any program")
            content = bytearray(archive.read(f"{root}/data/{folder}/{entry['path_name']}"))
            sizes = _shape(f"weight {name[:80]!r}", meta["sizes"], spec)
            strides = [one["as_int"] for one in meta["strides"]]
            kind = _TYPES[meta["dtype"]]
            flat = torch.frombuffer(content, dtype=kind) if content else torch.empty(0, dtype=kind)
            found[name] = torch.as_strided(
                flat, sizes, strides, meta["storage_offset"]["as_int"]
            ).contiguous()
    return {short: found[long] for short, long in names.items()}


def _step(node: Mapping[str, Any], spec: EncoderSpec) -> _Step | None:
    parts = str(node["target"]).split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        raise _refused(spec, f"it calls {node['target']!s:.100}")
    name, overload = parts[3:]
    if name in CHECKS:
        return None
    if name not in ATEN or not overload.isidentifier() or "out" in overload.split("_"):
        raise _refused(spec, f"it calls aten.{name[:60]}.{overload[:40]}")
    operator = getattr(getattr(torch.ops.aten, name), overload)
    inputs = tuple((one["name"], one.get("kind") == 2, one["arg"]) for one in node["inputs"])
    _check_arguments(name, operator, inputs, spec)
    outputs = node["outputs"]
    is_list = len(outputs) == 1 and "as_tensors" in outputs[0]
    results = (
        outputs[0]["as_tensors"] if is_list else [one["as_tensor"] for one in outputs if "as_tensor" in one]
    )
    return _Step(operator, inputs, tuple(one["name"] for one in results), is_list)


def _check_arguments(
    name: str, operator: Any, inputs: tuple[tuple[str, bool, Mapping[str, Any]], ...], spec: EncoderSpec
) -> None:
    """Refuse what writes into its inputs, is random, or takes more than plain values.

    What an argument means follows from the operator's own schema, not from what the file calls it.
    """
    schema = operator._schema.arguments
    if any(one.alias_info is not None and one.alias_info.is_write for one in schema):
        raise _refused(spec, f"aten.{name} writes into its inputs")
    if any(str(one.type) not in ("Tensor", "List[Tensor]") for one in operator._schema.returns):
        raise _refused(spec, f"aten.{name} returns no tensor")
    named = {one.name: one for one in schema}
    for place, (key, keyword, argument) in enumerate(inputs):
        taken = named.get(key) if keyword else schema[place] if place < len(schema) else None
        if taken is None:
            raise _refused(spec, f"aten.{name} has no argument {key[:40]!r}")
        _check_kind(name, str(taken.real_type), argument, spec)
        meaning = taken.name
        if meaning in ("train", "training", "dropout_p") and next(iter(argument.values())):
            raise _refused(spec, f"aten.{name} is in training mode")


def _check_masks(steps: Iterable[_Step], types: Mapping[str, int], spec: EncoderSpec) -> None:
    """Refuse indices that select by their values how many numbers come out."""
    for step in steps:
        name = step.operator._schema.name.removeprefix("aten::")
        if name == "index" and any(types.get(used) not in (4, 5) for used in _used(step)[1:]):
            raise _refused(spec, "aten.index takes a mask: the shape of its result depends on values")
        if name == "where" and len(step.inputs) == 1:
            raise _refused(spec, "aten.where returns positions: the shape of its result depends on values")


def _check_reads(steps: Iterable[_Step], shapes: Mapping[str, tuple[int, ...]], spec: EncoderSpec) -> None:
    """Refuse shapes with which operators that do not check them read memory beyond their inputs: another image's."""
    for step in steps:
        name = step.operator._schema.name.removeprefix("aten::")
        named = zip((one.name for one in step.operator._schema.arguments), step.inputs, strict=False)
        given = {key if keyword else place: argument for place, (key, keyword, argument) in named}
        found = {
            place: shapes.get(argument["as_tensor"]["name"])
            for place, argument in given.items()
            if "as_tensor" in argument
        }
        if name == "_native_batch_norm_legit_no_training":
            channels = (found.pop("input", None) or (0, 0))[1:2]
            safe = all(shape == channels for shape in found.values())
        elif name == "scaled_dot_product_attention":
            query, key, value = (found.get(place) or () for place in ("query", "key", "value"))
            safe = query[:-2] == key[:-2] and key[:-1] == value[:-1] and query[-1:] == key[-1:]
        else:
            continue
        if not safe:
            raise _refused(spec, f"aten.{name} is given the shapes {list(found.values())}")


def _check_kind(name: str, taken: str, argument: Mapping[str, Any], spec: EncoderSpec) -> None:
    """Refuse an argument of another kind than the operator takes."""
    kind = next(iter(argument), "nothing") if len(argument) == 1 else "nothing"
    plain = taken.removeprefix("Optional[").removesuffix("]") if taken.startswith("Optional[") else taken
    fits = plain != taken if kind == "as_none" else plain in _KINDS.get(kind, ())
    if not fits:
        raise _refused(spec, f"aten.{name} takes a {taken} and is given {kind[:40]}")


def _used(step: _Step) -> list[str]:
    """Names of the tensors that a step reads."""
    names = []
    for _, _, argument in step.inputs:
        ((kind, value),) = argument.items()
        listed = value if isinstance(value, list) else [value]
        if kind in ("as_tensor", "as_tensors"):
            names += [one["name"] for one in listed]
        elif kind.startswith("as_optional_tensor"):
            names += [one["as_tensor"]["name"] for one in listed if "as_tensor" in one]
    return names


def _completed(value: Mapping[str, Any], spec: EncoderSpec) -> EncoderSpec:
    sides = [one["as_int"] for one in value["sizes"]]
    if len(sides) != 4 or sides[0] != 1 or sides[2] != sides[3] or value["dtype"] != 7:
        raise _refused(spec, f"its input has the shape {sides}: it must be float32, one square image")
    spec = spec.with_defaults(input_channels=sides[1], input_size=sides[2])
    if [spec.input_channels, spec.input_size] != sides[1:3]:
        raise _refused(
            spec,
            f"its input has the shape {sides}, and the study gives {spec.input_channels} x {spec.input_size}",
        )
    return spec


def _stopped(why: str) -> InvalidValue:
    return InvalidValue(
        f"the exported encoder stopped: {why}",
        "every result has the shape that the program states",
        "export it again with fixed shapes, or use a smaller encoder",
    )


def _refused(spec: EncoderSpec, why: str) -> InvalidValue:
    return InvalidValue(
        f"the encoder {spec.name} cannot be used: {why[:500]}",
        "a program has fixed shapes, a batch of 1, and functional operators that depend on the image alone",
        "export it so: torch.export.export(module.eval(), (torch.zeros(1, 3, 224, 224),)).run_decompositions({})",
    )
