"""A trained model as an ONNX graph: encoder and head together, from an image of the study's size to probabilities."""

import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedveil.errors import InvalidValue, StudyError
from fedveil.io import write_atomic
from fedveil.learning.encoders import PRECOMPUTED
from fedveil.report.exports import check_targets
from fedveil.study import TrainedModel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["INPUT", "OUTPUT", "TOLERANCE", "as_module", "example", "facts", "quiet", "write_onnx"]

INPUT, OUTPUT = "images", "probabilities"
OPSET = 18
_DECISIONS = {
    "classes": "the class with the largest probability divided by its frequency",
    "findings": "each finding whose probability is larger than its frequency",
}
TOLERANCE = 1e-5
"""By how much a probability of the exported model may differ from fedveil's."""


def as_module(model: TrainedModel) -> "nn.Module":
    """The model as one PyTorch module; see `fedveil.learning.networks.whole`.

    Raises:
        InvalidValue: its encoder cannot be exported.
    """
    from fedveil.learning import ClassHead, FindingsHead
    from fedveil.learning.networks.whole import whole_head, whole_network

    if model.slices is not None:
        raise InvalidValue(
            "the model classifies volumes",
            "an export takes single images",
            "use `fedveil predict`, which every model works with",
        )
    head = model.model
    if isinstance(head, ClassHead | FindingsHead):
        return whole_head(model.extractor, head, model.parameters, model.image_size)
    return whole_network(head, model.parameters)


def example(model: TrainedModel, count: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Inputs of the right shape, (count, channels, size, size) in [0, 1], or (count, d) for embeddings."""
    shape: tuple[int, ...] = (model.channels, model.image_size, model.image_size)
    if model.features == PRECOMPUTED and model.network == "linear":
        shape = (model.extractor.dimension,)
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)


def write_onnx(model: TrainedModel, path: Path) -> Path:
    """Write the graph, after comparing its probabilities with the model's.

    Input ``images``: float32 (n, channels, size, size) in [0, 1], or (n, d) for a model of embeddings. Output
    ``probabilities``: float32 (n, classes), under the class frequencies of training. The graph's metadata states
    classes, frequencies and what was done to images before.

    Raises:
        InvalidValue: the encoder cannot be exported, or what is needed is not installed.
        StudyError: the file exists, or the graph computes something else.
    """
    check_targets(path)
    content = _graph(model)
    found = probabilities_of(content, example(model))
    worst = float(np.abs(found - model.probabilities(example(model))).max())
    if not worst <= TOLERANCE:
        raise StudyError(
            f"the exported graph differs from the model by {worst:.2g}",
            f"probabilities must agree to {TOLERANCE:g}",
            "use `fedveil predict`, and report this as a fault",
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(content))
    return path


def probabilities_of(content: bytes, images: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, Any]:
    """What ONNX Runtime computes with a graph."""
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found: np.ndarray[Any, Any] = session.run([OUTPUT], {INPUT: images})[0]
    return found


def _graph(model: TrainedModel) -> bytes:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - the graph is compared with the model before it is written
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise InvalidValue(
            f"{error.name} is not installed", "ONNX files are written with it", 'pip install "fedveil[onnx]"'
        ) from None
    import torch

    written = io.BytesIO()
    images = torch.from_numpy(example(model))
    with quiet(), torch.inference_mode():
        program = torch.onnx.export(
            as_module(model),
            (images,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
            verbose=False,
        )
    onnx.save_model(_described(program.model_proto, model), written)  # type: ignore[union-attr]
    return written.getvalue()


def _described(graph: Any, model: TrainedModel) -> Any:
    """The graph without the exporter's notes, which hold paths of this machine, and with what its reader needs."""
    for part in (*graph.graph.node, *graph.graph.value_info, *graph.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    graph.producer_name = "fedveil"
    del graph.metadata_props[:]
    for key, value in facts(model).items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    return graph


def facts(model: TrainedModel) -> dict[str, Any]:
    """What a program needs beside the graph: the meaning of inputs and outputs."""
    reading = model.reading
    return {
        "classes": list(model.classes),
        "task": model.task,
        "frequencies": [float(one) for one in model.frequencies],
        "frequencies_are": "released with noise"
        if model.frequencies_released
        else "assumed equal: none were released",
        "features": model.features,
        "network": model.network,
        "channels": model.channels,
        "image_size": model.image_size,
        "window": list(reading.window) if isinstance(reading.window, tuple) else reading.window,
        "input": "float32 in [0, 1], (n, channels, size, size): grey values by window or range, then resampled",
        "decision": _DECISIONS.get(model.task, _DECISIONS["classes"]),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter's warnings concern its own code."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
