"""Encoders that are not built in: their features, their files, and what a hostile file cannot do."""

import json
import pickle
import sys
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from safetensors.torch import save
from tests.learning.encoders.graphs import exported_file, images, module, onnx_file, onnx_model
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.encoders import EncoderSpec, feature_extractor
from fedveil.learning.encoders.external import External, Store, examine
from fedveil.learning.encoders.external.register import register

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "encoders"))
    return Store()


def pinned(kind: str, content: bytes, store: Store, **settings: object) -> EncoderSpec:
    """Registered in this process: the process apart is tried by tests of its own."""
    digest = store.add(content)
    return examine(content, EncoderSpec(**{"kind": kind, "name": "it", "sha256": digest, **settings}))[0]


def by_torch(net: nn.Module, stack: np.ndarray) -> np.ndarray:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.inference_mode():
        maps = net((torch.from_numpy(stack) - mean[:, None, None]) / std[:, None, None])
    return torch.cat([maps.mean((2, 3)), maps.flatten(2).std(2, correction=0)], 1).numpy()


@pytest.mark.parametrize("kind", ["onnx", "exported"])
def test_a_file_computes_what_its_module_does(kind: str, store: Store) -> None:
    content = onnx_file() if kind == "onnx" else exported_file()
    spec = pinned(kind, content, store)
    assert (spec.input_size, spec.input_channels, spec.lengths) == (32, 3, (12, 12))
    found = feature_extractor(f"{kind}:it", 32, 3, encoder=spec)(images())
    np.testing.assert_allclose(found, by_torch(module(), images()), atol=1e-5)


@pytest.mark.parametrize("kind", ["onnx", "exported"])
def test_grey_images_of_another_size_are_repeated_and_resized(kind: str, store: Store) -> None:
    content = onnx_file() if kind == "onnx" else exported_file()
    found = External(pinned(kind, content, store), 1)(images(3, 1, 64))
    small = torch.nn.functional.interpolate(
        torch.from_numpy(images(3, 1, 64)), (32, 32), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(found, by_torch(module(), small.expand(-1, 3, -1, -1).numpy()), atol=1e-5)


def test_no_image_affects_another_even_if_the_graph_looks_at_its_batch(store: Store) -> None:
    """A mean over the batch: image by image it is a constant, whoever else is there."""
    axes = helper.make_node("Constant", [], ["axes"], value_ints=[0])
    mean = helper.make_node("ReduceMean", ["maps", "axes"], ["mean"], keepdims=1)
    half = helper.make_node("Constant", [], ["half"], value_float=0.5)
    parts = [axes, mean, half, helper.make_node("Mul", ["mean", "half"], ["m"])]
    content = onnx_file([*parts, helper.make_node("Sub", ["maps", "m"], ["out"])], output="out")
    encoder = External(pinned("onnx", content, store), 3)
    stack = images(20)
    together = encoder(stack)
    stack[1:] = 0
    np.testing.assert_array_equal(encoder(stack)[0], together[0])


def test_an_image_without_finite_features_leaves_the_others_alone(store: Store) -> None:
    """A logarithm of a pixel that one image sets below 0."""
    first = helper.make_node("Slice", ["pixels", "from", "to"], ["corner"])
    ends = [
        helper.make_node("Constant", [], [name], value_ints=value)
        for name, value in (("from", [0, 0, 0, 0]), ("to", [1, 1, 1, 1]))
    ]
    shifted = helper.make_node("Log", ["corner"], ["log"])
    content = onnx_file(
        [*ends, first, shifted, helper.make_node("Add", ["maps", "log"], ["out"])], output="out"
    )
    digest = store.add(content)
    spec = EncoderSpec(
        kind="onnx", name="it", sha256=digest, lengths=(12, 12), input_size=32, input_channels=3, output="out",
        mean=(0.0,), std=(1.0,), prefix=1,
    )  # fmt: skip
    encoder, stack = External(spec, 3), images(4)
    before = encoder(stack)
    stack[2, 0, 0, 0] = -1
    after = encoder(stack)
    assert (after[2] == 0).all()
    np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))
    with pytest.raises(InvalidValue, match="not finite for ordinary images"):
        examine(content, replace(spec, mean=(0.5,)))


def tampered(change: str) -> onnx.ModelProto:
    model = onnx_model()
    match change:
        case "external":
            tensor = model.graph.initializer[0]
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="/etc/passwd")
            tensor.ClearField("raw_data")
        case "custom":
            return onnx_model([helper.make_node("Evil", ["maps"], ["y"], domain="evil")], domains=["evil"])
        case "unknown":
            return onnx_model([helper.make_node("RandomNormalLike", ["maps"], ["y"])], output="y")
        case "loop":
            body = helper.make_graph([], "body", [], [])
            return onnx_model([helper.make_node("Identity", ["maps"], ["y"], body=body)])
        case "training":
            model.graph.node.append(helper.make_node("Dropout", ["maps", "r", "t"], ["y"]))
        case "huge":
            shape = helper.make_node("Constant", [], ["s"], value_ints=[2**15, 2**15])
            return onnx_model([shape, helper.make_node("ConstantOfShape", ["s"], ["y"])], output="y")
        case "values" | "claimed":
            parts = [
                helper.make_node("Cast", ["maps"], ["whole"], to=TensorProto.INT64),
                helper.make_node("ReduceMax", ["whole"], ["largest"], keepdims=0),
                helper.make_node("Constant", [], ["flat"], value_ints=[1]),
                helper.make_node("Reshape", ["largest", "flat"], ["s"]),
                helper.make_node("ConstantOfShape", ["s"], ["f"]),
                helper.make_node("ReduceSum", ["f"], ["z"], keepdims=0),
                helper.make_node("Add", ["maps", "z"], ["y"]),
            ]
            model = onnx_model(parts, output="y")
            if change == "claimed":
                model.graph.value_info.append(helper.make_tensor_value_info("f", TensorProto.FLOAT, [1]))
        case "function":
            model.functions.add(name="f", domain="")
        case "channels":
            model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 7
        case "batch":
            model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        case "integers":
            model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("external", "is in another file"),
        ("custom", "operators of evil"),
        ("unknown", "RandomNormalLike"),
        ("loop", "holds another graph"),
        ("training", "training mode"),
        ("huge", "has the shape"),
        ("values", "does not follow from the graph alone"),
        ("claimed", "does not follow from the graph alone"),
        ("function", "functions"),
        ("channels", "takes 7 channels"),
        ("batch", "one image"),
        ("integers", "must be float32"),
    ],
)
def test_a_hostile_graph_is_refused(change: str, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        examine(tampered(change).SerializeToString(), EncoderSpec(kind="onnx", name="it"))


@pytest.mark.parametrize("kind", ["onnx", "exported", "timm"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 no archive", b"\x80\x04]" * 50])
def test_a_damaged_file_is_refused(kind: str, content: bytes) -> None:
    name = "resnet18" if kind == "timm" else "it"
    with pytest.raises(InvalidValue, match="cannot be used"):
        examine(content, EncoderSpec(kind=kind, name=name))


class Random(nn.Module):
    """Noise in the graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.rand_like(x)


class Stateful(nn.Module):
    """A counter of the images seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.Buffer(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.add_(1)
        return x * self.seen


@pytest.mark.parametrize(
    ("net", "functional", "said"),
    [
        (Random(), True, "calls aten.rand"),
        (Stateful(), True, "changes what it computes with"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)), False, "calls aten.relu_"),
        (nn.Sequential(nn.Dropout()).train(), True, "calls aten|training mode"),
        (nn.Sequential(nn.BatchNorm2d(3)).train(), True, "changes what|training mode|calls aten"),
    ],
)
def test_a_program_with_state_or_chance_is_refused(net: nn.Module, functional: bool, said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        examine(exported_file(net, functional=functional), EncoderSpec(kind="exported", name="it"))


class Evil:
    """Runs a command where it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("pickle-was-run"),)


def rewritten(content: bytes, change: object) -> bytes:
    """An archive with some of its files changed."""
    file = BytesIO()
    with zipfile.ZipFile(BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def test_nothing_in_a_program_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = pickle.dumps(Evil())
    inputs = rewritten(exported_file(), lambda name, old: evil if "sample_inputs" in name else old)
    spec = pinned("exported", inputs, store)
    assert External(spec, 3)(images()).shape == (5, 24)

    def pickled(name: str, old: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            values = json.loads(old)
            values["config"]["0.weight"]["use_pickle"] = True
            return json.dumps(values).encode()
        return evil if name.endswith("weight_0") else old

    with pytest.raises(InvalidValue, match="is pickled"):
        examine(rewritten(exported_file(), pickled), EncoderSpec(kind="exported", name="it"))
    assert not (tmp_path / "pickle-was-run").exists()


@pytest.mark.parametrize(
    "target", ["torch.ops.aten.fill_.Scalar", "os.system", "torch.ops.prims.iota.default"]
)
def test_a_program_cannot_call_what_it_likes(target: str) -> None:
    def change(name: str, old: bytes) -> bytes:
        return old.replace(b"torch.ops.aten.relu.default", target.encode()) if "models/" in name else old

    with pytest.raises(InvalidValue, match="it calls"):
        examine(rewritten(exported_file(), change), EncoderSpec(kind="exported", name="it"))


class Attention(nn.Module):
    """One head, with its dropout as an argument."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2)
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, None, 0.0)


def test_a_program_that_misnames_an_argument_gets_no_dropout() -> None:
    """What an argument means follows from its place, not from what the file calls it."""

    def change(name: str, old: bytes) -> bytes:
        if "models/" not in name:
            return old
        program = json.loads(old)
        (node,) = [one for one in program["graph_module"]["graph"]["nodes"] if "scaled" in one["target"]]
        none = {"name": "attn_mask", "arg": {"as_none": True}, "kind": 1}
        chance = {"name": "innocent", "arg": {"as_float": 0.5}, "kind": 1}
        node["inputs"] = [*node["inputs"][:3], none, chance]
        return json.dumps(program).encode()

    with pytest.raises(InvalidValue, match="training mode"):
        examine(rewritten(exported_file(Attention()), change), EncoderSpec(kind="exported", name="it"))


def test_an_altered_or_missing_file_is_never_used(store: Store) -> None:
    spec = pinned("onnx", onnx_file(), store)
    path = store.folder / spec.sha256
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(InvalidValue, match="was altered"):
        External(spec, 3)(images())
    path.unlink()
    with pytest.raises(InvalidValue, match=r"is not registered here.*encoder add"):
        External(spec, 3).check()


def test_a_file_from_anyone_is_examined_in_a_process_with_limits(tmp_path: Path, store: Store) -> None:
    (tmp_path / "good.onnx").write_bytes(onnx_file())
    spec, report = register(EncoderSpec(kind="onnx", name="good.onnx"), tmp_path)
    assert (spec.features, report.dimension, report.repeatable) == ("onnx:good.onnx", 24, True)
    assert store.has(spec.sha256)
    (tmp_path / "bad.onnx").write_bytes(tampered("unknown").SerializeToString())
    with pytest.raises(InvalidValue, match="RandomNormalLike"):
        register(EncoderSpec(kind="onnx", name="bad.onnx"), tmp_path)
    with pytest.raises(InvalidValue, match="the study names"):
        register(EncoderSpec(kind="onnx", name="good.onnx", sha256="0" * 64), tmp_path)
    with pytest.raises(InvalidValue, match="cannot be read"):
        register(EncoderSpec(kind="onnx", name="none.onnx"), tmp_path)
    assert len(list(store.folder.iterdir())) == 1


def test_an_examination_that_takes_too_long_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[register.__module__], "SECONDS", 0.01)
    (tmp_path / "slow.onnx").write_bytes(onnx_file())
    with pytest.raises(InvalidValue, match="took more than"):
        register(EncoderSpec(kind="onnx", name="slow.onnx"), tmp_path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"output": "nothing"}, "its outputs are maps"),
        ({"pooling": "class"}, "no class token"),
        ({"input_size": 64}, "64"),
        ({"lengths": (7,)}, "the study states"),
    ],
)
def test_settings_that_the_file_does_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidValue, match=said):
        examine(onnx_file(), EncoderSpec(kind="onnx", name="it", **settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"input_size": 4},
        {"input_channels": 2},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"mean": (1.0, 2.0)},
        {"sha256": "xyz"},
        {"lengths": (200_000,)},
    ],
)
def test_impossible_specs_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InvalidValue):
        EncoderSpec(kind="onnx", name="it", **settings)


def test_colour_images_and_a_grey_encoder_are_refused(store: Store) -> None:
    spec = replace(pinned("onnx", onnx_file(), store), input_channels=1)
    with pytest.raises(InvalidValue, match="takes grey images"):
        External(spec, 3)


def vit_weights(**settings: object) -> bytes:
    torch.manual_seed(0)
    return save(timm.create_model("vit_tiny_patch16_224", **settings).state_dict())


def test_networks_of_timm_take_local_weights_at_any_size(store: Store) -> None:
    content = vit_weights()
    spec = pinned("timm", content, store, name="vit_tiny_patch16_224", input_size=64, pooling="class")
    assert (spec.mean, spec.prefix, spec.lengths) == ((0.5, 0.5, 0.5), 1, (192,))
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224").eval()
    encoder = External(spec, 3)
    assert encoder(images(18)).shape == (18, 192)
    same = replace(spec, input_size=224, graph="", lengths=())
    same = examine(content, same)[0]
    stack = images(2, 3, 224)
    with torch.inference_mode():
        expected = net.forward_features((torch.from_numpy(stack) - 0.5) / 0.5)[:, 0].numpy()
    np.testing.assert_allclose(External(same, 3)(stack), expected, atol=1e-4)


def test_an_image_has_the_same_features_of_timm_in_any_company(store: Store) -> None:
    encoder = External(pinned("timm", vit_weights(), store, name="vit_tiny_patch16_224", input_size=32), 3)
    stack = images(20)
    np.testing.assert_array_equal(encoder(stack)[19], encoder(stack[19:])[0])


def test_layers_and_graphs_of_timm_that_do_not_exist_are_refused(store: Store) -> None:
    content = vit_weights()
    asked = {"name": "vit_tiny_patch16_224", "input_size": 32}
    middle, last = (pinned("timm", content, store, layer=layer, **asked) for layer in (3, 11))
    assert middle.lengths == last.lengths == (192, 192)
    assert not np.allclose(External(middle, 3)(images()), External(last, 3)(images()))
    with pytest.raises(InvalidValue, match=r"model.encoder.layer is 12"):
        pinned("timm", content, store, layer=12, **asked)
    with pytest.raises(InvalidValue, match="knows no network"):
        pinned("timm", content, store, name="vit_no")
    with pytest.raises(InvalidValue, match="do not fit"):
        pinned("timm", content, store, name="vit_small_patch16_224", input_size=32)
    with pytest.raises(InvalidValue, match="install the version of timm"):
        pinned("timm", content, store, graph="0" * 64, **asked)
    with pytest.raises(InvalidValue, match=r"never downloaded.*--weights"):
        register(EncoderSpec(kind="timm", name="vit_tiny_patch16_224"))
