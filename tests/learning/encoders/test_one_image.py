"""An encoder from a file that fails on one image leaves the features of the others."""

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from tests.learning.encoders.graphs import exported_file, images, onnx_file
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.encoders import EncoderSpec, failures
from fedveil.learning.encoders.external import External, Store, examine
from fedveil.learning.encoders.external.processes import Processes

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "encoders"))
    return Store()


def onnx_tripwire() -> bytes:
    """Looks up entry 1,000 of a table of one where the first pixel is white and the last is black."""

    def constant(name: str, value: object) -> object:
        return helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name)
        )

    return onnx_file(
        [
            constant("i0", np.array([[0, 0, 0, 0]], np.int64)),
            constant("i1", np.array([[0, 0, 31, 31]], np.int64)),
            helper.make_node("GatherND", ["pixels", "i0"], ["p0"]),
            helper.make_node("GatherND", ["pixels", "i1"], ["p1"]),
            constant("high", np.float32(2.0)),
            constant("low", np.float32(-2.0)),
            helper.make_node("Greater", ["p0", "high"], ["g"]),
            helper.make_node("Less", ["p1", "low"], ["l"]),
            helper.make_node("And", ["g", "l"], ["both"]),
            helper.make_node("Cast", ["both"], ["k"], to=TensorProto.INT64),
            constant("far", np.int64(1000)),
            helper.make_node("Mul", ["k", "far"], ["at"]),
            constant("table", np.zeros(1, np.float32)),
            helper.make_node("Gather", ["table", "at"], ["z"]),
            helper.make_node("Add", ["maps", "z"], ["out"]),
        ],
        output="out",
    )


class Tripwire(nn.Module):
    """The same in torch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 8, 3, 2)
        self.table = nn.Buffer(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = torch.logical_and(x[0, 0, 0, 0] > 2.0, x[0, 0, 31, 31] < -2.0).to(torch.int64) * 1000
        return self.net(x) + torch.index_select(self.table, 0, found.reshape(1)).reshape(1, 1, 1, 1)


@pytest.mark.parametrize("kind", ["onnx", "exported"])
def test_an_encoder_that_raises_on_one_image_leaves_the_others(kind: str, store: Store) -> None:
    """The coordinator chooses the encoder: all images of a hospital were gone if one was there."""
    content = onnx_tripwire() if kind == "onnx" else exported_file(Tripwire().eval())
    spec = examine(content, EncoderSpec(kind=kind, name="it", sha256=store.add(content)))[0]
    encoder, stack = External(spec, 3), images(6) * np.float32(0.9)
    before = encoder(stack)
    stack[2, :, 0, 0], stack[2, :, 31, 31] = 1, 0
    with failures() as failed:
        after = encoder(stack)
    assert failed == {2}
    assert not after[2].any()
    np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))


def test_an_encoder_sees_one_image_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's networks too: in a batch of sixteen their rounding may follow the other images."""
    seen = []
    real = Processes.__call__

    def noting(processes: Processes, image: torch.Tensor) -> torch.Tensor:
        seen.append(len(image))
        return real(processes, image)

    timm = pytest.importorskip("timm")
    from safetensors.torch import save

    content = save(timm.create_model("resnet18", num_classes=0).state_dict())
    named = EncoderSpec(kind="timm", name="resnet18", sha256=store.add(content), input_size=32)
    encoder = External(examine(content, named)[0], 3)
    monkeypatch.setattr(Processes, "__call__", noting)
    encoder(images(3))
    assert seen == [1, 1, 1]


class Filled(nn.Module):
    """Adds the largest of three zeros, in a tensor of a fixed size."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2, ::2] + torch.full((3,), 0.0).amax()


class Chosen(nn.Module):
    """Adds a number that an index chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Buffer(torch.tensor([0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x.flatten()[self.at]


def edited(content: bytes, change: Callable[[dict], None], part: str = "/models/") -> bytes:
    """A program with its JSON changed."""
    file = BytesIO()
    with ZipFile(BytesIO(content)) as old, ZipFile(file, "w") as new:
        for name in old.namelist():
            held = old.read(name)
            if part in name and name.endswith(".json"):
                values = json.loads(held)
                change(values)
                held = json.dumps(values).encode()
            new.writestr(name, held)
    return file.getvalue()


def size_from_a_tensor(program: dict) -> None:
    graph = program["graph_module"]["graph"]
    (full,) = [one for one in graph["nodes"] if "aten.full" in one["target"]]
    full["inputs"][0]["arg"] = {"as_tensors": [{"name": "x"}]}


def mask(program: dict) -> None:
    graph = program["graph_module"]["graph"]
    (index,) = [one for one in graph["nodes"] if "aten.index." in one["target"]]
    name = next(iter(index["inputs"][1]["arg"].values()))[0]
    graph["tensor_values"][(name.get("as_tensor") or name)["name"]]["dtype"] = 12


@pytest.mark.parametrize(
    ("net", "change", "said"),
    [
        (Filled(), size_from_a_tensor, "aten.full takes a .* and is given as_tensors"),
        (Chosen(), mask, "takes a mask"),
    ],
)
def test_a_program_whose_shapes_depend_on_values_is_refused(
    net: nn.Module, change: Callable[[dict], None], said: str
) -> None:
    content = exported_file(net)
    examine(content, EncoderSpec(kind="exported", name="it"))
    with pytest.raises(InvalidValue, match=said):
        examine(edited(content, change), EncoderSpec(kind="exported", name="it"))


def test_a_result_of_another_shape_than_stated_is_refused() -> None:
    def small(program: dict) -> None:
        graph = program["graph_module"]["graph"]
        (full,) = [one for one in graph["nodes"] if "aten.full" in one["target"]]
        full["inputs"][0]["arg"] = {"as_ints": [4]}

    with pytest.raises(InvalidValue, match=r"has the shape \(4,\), not \(3,\)"):
        examine(edited(exported_file(Filled()), small), EncoderSpec(kind="exported", name="it"))


def test_weights_that_are_stretched_beyond_the_limit_are_refused() -> None:
    """With strides of 0 a file of one number could ask for any amount of memory."""

    def stretched(values: dict) -> None:
        meta = values["config"]["0.weight"]["tensor_meta"]
        meta["sizes"] = [{"as_int": 2**15}, {"as_int": 2**15}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]

    with pytest.raises(InvalidValue, match="shapes are fixed and limited"):
        examine(
            edited(exported_file(), stretched, "model_weights_config"),
            EncoderSpec(kind="exported", name="it"),
        )
