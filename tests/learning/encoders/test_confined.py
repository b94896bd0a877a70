"""Encoders from files compute in processes with limits: whatever a graph does, only its image has no features."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save
from tests.learning.encoders.graphs import exported_file, images, onnx_file
from tests.learning.encoders.test_one_image import edited
from torch import nn

from fedveil.errors import InvalidValue
from fedveil.learning.encoders import EncoderSpec, failures
from fedveil.learning.encoders.external import External, Store, examine, processes
from fedveil.learning.encoders.external.register import register
from fedveil.learning.encoders.external.runner import load_runner, vectors
from fedveil.learning.encoders.extractor import in_batches

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("FEDVEIL_ENCODERS", str(tmp_path / "encoders"))
    return Store()


def unexamined(content: bytes, store: Store, length: int = 24, **settings: object) -> External:
    """As a coordinator would state it that knows what the file does."""
    kind = "onnx" if "output" in settings else "exported"
    known = {"name": "it", "input_size": 32, "input_channels": 3, "prefix": 1, "mean": (0.0,), "std": (1.0,)}
    spec = EncoderSpec(kind=kind, sha256=store.add(content), lengths=(length // 2,) * 2, **known | settings)
    return External(spec, 3)


@pytest.mark.parametrize("kind", ["onnx", "exported", "timm"])
def test_features_are_bit_for_bit_those_of_this_process(kind: str, store: Store) -> None:
    name = "resnet18" if kind == "timm" else "it"
    torch.manual_seed(0)
    content = {
        "onnx": onnx_file,
        "exported": exported_file,
        "timm": lambda: save(timm.create_model(name, num_classes=0).state_dict()),
    }[kind]()
    stated = EncoderSpec(kind=kind, name=name, sha256=store.add(content), input_size=32)
    spec = examine(content, stated)[0]
    runner, _ = load_runner(content, spec)
    stack = images(9, 3, 48)
    here = in_batches(vectors(runner, spec), torch.from_numpy(stack), spec.dimension, 1)
    np.testing.assert_array_equal(External(spec, 3)(stack), here)


class Greedy(nn.Module):
    """25 tensors of 2 GiB at a time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        held = [(x.amax().double() + number).reshape(1).repeat(2**28) for number in range(25)]
        return x[:, :, ::2, ::2] + torch.stack([one.amax() for one in held]).amax().float()


class Endless(nn.Module):
    """Minutes of matrix products."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.mean().reshape(1, 1).repeat(8192, 8192)
        for _ in range(20):
            wide = (wide @ wide).tanh()
        return x[:, :, ::2, ::2] + wide.amax()


def test_a_graph_that_allocates_fifty_gigabytes_is_a_failure_and_a_clear_sentence(
    store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for module in (processes, sys.modules[register.__module__]):
        monkeypatch.setattr(module, "MEMORY", 3 * 2**30)
    content = exported_file(Greedy().eval())
    with failures() as failed:
        assert not unexamined(content, store, 6)(images(1)).any()
    assert failed == {0}
    assert "allocate memory" in caplog.text
    (tmp_path / "greedy.pt2").write_bytes(content)
    with pytest.raises(InvalidValue, match=r"fails on an image.*allocate memory"):
        register(EncoderSpec(kind="exported", name="greedy.pt2"), tmp_path)


def test_a_graph_that_does_not_return_is_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(processes, "SECONDS", 1)
    with failures() as failed:
        assert not unexamined(exported_file(Endless().eval()), store, 6)(images(1)).any()
    assert failed == {0}
    assert "took more than" in caplog.text


def dividing() -> bytes:
    """Divides the lowest integer by -1 where the first pixel is white, which ends a process on many processors."""

    def constant(name: str, value: object) -> object:
        return helper.make_node(
            "Constant", [], [name], value=numpy_helper.from_array(np.asarray(value), name)
        )

    return onnx_file(
        [
            constant("place", np.array([[0, 0, 0, 0]], np.int64)),
            helper.make_node("GatherND", ["pixels", "place"], ["p"]),
            constant("high", np.float32(0.95)),
            helper.make_node("Greater", ["p", "high"], ["white"]),
            helper.make_node("Cast", ["white"], ["k"], to=TensorProto.INT64),
            constant("two", np.int64(2)),
            helper.make_node("Mul", ["k", "two"], ["twice"]),
            constant("one", np.int64(1)),
            helper.make_node("Sub", ["one", "twice"], ["sign"]),
            constant("lowest", np.array([-(2**63)], np.int64)),
            helper.make_node("Div", ["lowest", "sign"], ["q"]),
            helper.make_node("Cast", ["q"], ["f"], to=TensorProto.FLOAT),
            constant("tiny", np.float32(0)),
            helper.make_node("Mul", ["f", "tiny"], ["z"]),
            helper.make_node("Add", ["maps", "z"], ["out"]),
        ],
        output="out",
    )


def test_a_graph_that_ends_its_process_on_one_image_leaves_the_others(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """The site service ended: by whether it runs, a coordinator learned of one pixel of one patient."""
    encoder, stack = unexamined(dividing(), store, output="out"), images(6) * np.float32(0.9)
    before = encoder(stack)
    assert before.any(1).all()
    stack[2, :, 0, 0] = 1
    with failures() as failed:
        after = encoder(stack)
    np.testing.assert_array_equal(np.delete(after, 2, 0), np.delete(before, 2, 0))
    if failed:  # on x86; ARM's division does not trap
        assert failed == {2}
        assert not after[2].any()
        assert "SIGFPE" in caplog.text


def test_an_image_counts_as_failed_only_if_a_fresh_process_fails_on_it(store: Store) -> None:
    """What an image before it left behind, or did to the process, decides nothing."""
    content = onnx_file()
    spec = examine(content, EncoderSpec(kind="onnx", name="fresh", sha256=store.add(content)))[0]
    encoder, stack = External(spec, 3), images(4)
    before = encoder(stack)
    before_ended = list(encoder._processes()._free)
    for process in before_ended:
        process._process.kill()
    with failures() as failed:
        np.testing.assert_array_equal(encoder(stack), before)
    assert not failed
    assert not set(before_ended) & set(encoder._processes()._free)


def test_an_encoder_that_was_removed_while_its_process_was_idle_is_an_error_not_zeros(store: Store) -> None:
    content = onnx_file()
    spec = examine(content, EncoderSpec(kind="onnx", name="idle", sha256=store.add(content)))[0]
    encoder = External(spec, 3)
    encoder(images())
    for process in encoder._processes()._free:
        process._process.kill()
    (store.folder / spec.sha256).unlink()
    while not all(process.has_ended for process in encoder._processes()._free):
        time.sleep(0.01)
    with pytest.raises(InvalidValue, match="is not registered here"):
        encoder(images())


def test_an_encoder_can_be_used_after_the_process_that_starts_others_ended(store: Store) -> None:
    content = onnx_file()
    spec = examine(content, EncoderSpec(kind="onnx", name="again", sha256=store.add(content)))[0]
    before = External(spec, 3)(images())
    nursery = processes._nursery()._process
    nursery.kill()
    nursery.wait()
    again = External(examine(content, EncoderSpec(kind="onnx", name="other", sha256=spec.sha256))[0], 3)
    np.testing.assert_array_equal(again(images()), before)


def test_the_process_can_open_nothing_and_hold_no_more_than_its_limit() -> None:
    """No connection, no file, no program: whatever a graph makes its process do."""
    script = """
import json, socket, subprocess, sys
from fedveil.learning.encoders.external.confined import close_files, limit
limit(6 * 2**30)
close_files()
found = {}
for name, function in {
    "connection": lambda: socket.socket(),
    "file": lambda: open("/etc/hostname"),
    "program": lambda: subprocess.run(["true"]),
    "memory": lambda: bytearray(7 * 2**30),
}.items():
    try:
        function()
        found[name] = "possible"
    except (OSError, MemoryError) as error:
        found[name] = "refused"
print(json.dumps(found))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout).values()) == {"refused"}


class Norm(nn.Sequential):
    """One that PyTorch computes without a look at how many constants there are."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Attention(nn.Module):
    """Fewer values lie about: of the last 8 pixels of each row."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        few = x[:, :, :8].contiguous()
        return nn.functional.scaled_dot_product_attention(x, x, x) + few.amax()


def short_mean(values: dict) -> None:
    meta = values["config"]["1.running_mean"]["tensor_meta"]
    meta["sizes"], meta["strides"] = [{"as_int": 1}], [{"as_int": 1}]


def short_values(program: dict) -> None:
    graph = program["graph_module"]["graph"]
    (attention,) = [one for one in graph["nodes"] if "scaled" in one["target"]]
    sides = {name: [side["as_int"] for side in one["sizes"]] for name, one in graph["tensor_values"].items()}
    (few,) = [name for name, found in sides.items() if found == [1, 3, 8, 32] and "clone" in name]
    nodes = graph["nodes"]
    nodes.sort(key=lambda one: one is attention or "amax" in one["target"] or "add" in one["target"])
    attention["inputs"][2]["arg"] = {"as_tensor": {"name": few}}


@pytest.mark.parametrize(
    ("net", "change", "part"),
    [
        (Norm(), short_mean, "model_weights_config"),
        (Attention(), short_values, "/models/"),
    ],
)
def test_a_program_cannot_read_memory_beyond_its_inputs(
    net: nn.Module, change: Callable[[dict], None], part: str
) -> None:
    """PyTorch computed batch norm with too few constants, and attention with too few values, from the memory after
    them: where another image had been."""
    content = exported_file(net.eval())
    examine(content, EncoderSpec(kind="exported", name="it"))
    with pytest.raises(InvalidValue, match="is given the shapes"):
        examine(edited(content, change, part), EncoderSpec(kind="exported", name="it"))
