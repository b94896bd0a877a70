"""A trained model as two files: ``model.safetensors`` holds the numbers, ``model.json`` all else that `predict` needs.

``model.json`` names the public feature extractor with its version, the images' size and channels, the
classes and their released frequencies, and carries the SHA-256 of the other file, so that files of two
models cannot be mixed up. Neither holds code: loading a model from elsewhere runs nothing.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fedveil.errors import FedveilError, StudyError
from fedveil.learning.centred import CentredHead
from fedveil.learning.evaluation import decide
from fedveil.learning.features import FeatureExtractor, feature_extractor
from fedveil.learning.learner import Vector

__all__ = ["TrainedModel", "load_model", "save_model"]

FORMAT = 1
TENSORS, DESCRIPTION = "model.safetensors", "model.json"
REMEDY = "restore both model files from a finished run, or train again"


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
    """A released classifier: everything it takes to go from images to class probabilities.

    Attributes:
        features: name of the extractor, as in the study file.
        image_size: pixels a side of the images it takes.
        channels: their channels.
        classes: names of the classes.
        parameters: of a `CentredHead` on those features: centre, then weights.
        priors: released class frequencies of training, for decisions under equal frequencies; None
            decides for the most probable class.
        facts: what else a reader should know, such as the guarantee; plain JSON values, not interpreted.
    """

    features: str
    image_size: int
    channels: int
    classes: tuple[str, ...]
    parameters: Vector
    priors: tuple[float, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The frozen feature extractor."""
        return feature_extractor(self.features, self.image_size, self.channels)

    @cached_property
    def head(self) -> CentredHead:
        """The trained head."""
        return CentredHead(self.extractor.blocks, len(self.classes))

    def probabilities(self, images: npt.NDArray[np.float32]) -> Vector:
        """Map images (k, channels, image_size, image_size) in [0, 1] to class probabilities (k, classes).

        Raises:
            InvalidValue: images of another shape, or not finite.
        """
        return self.head.probabilities(self.parameters, self.extractor(images))

    def decide(self, probabilities: Vector) -> npt.NDArray[np.int64]:
        """Class codes for probabilities (k, classes)."""
        return decide(probabilities, self.priors)


def save_model(folder: Path, model: TrainedModel) -> None:
    """Write both files into ``folder``, each of them whole or not at all, the description last.

    Raises:
        InvalidValue: the parameters do not fit the model.
        OSError: the folder cannot be written to.
    """
    model.head.split(model.parameters)
    tensors = save({"parameters": np.ascontiguousarray(model.parameters, dtype=np.float64)})
    description = {
        "format": FORMAT,
        "network": "linear",
        "features": model.features,
        "extractor": model.extractor.key,
        "image_size": model.image_size,
        "channels": model.channels,
        "classes": list(model.classes),
        "priors": None if model.priors is None else [float(prior) for prior in model.priors],
        "sha256": sha256(tensors).hexdigest(),
        "facts": dict(model.facts),
    }
    text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    _write(folder / TENSORS, tensors)
    _write(folder / DESCRIPTION, text.encode())


def load_model(folder: Path) -> TrainedModel:
    """Read a model that `save_model` wrote.

    Raises:
        StudyError: a file is missing, damaged, from another version, or the two do not belong together.
    """
    description = _described(folder / DESCRIPTION)
    tensors = _bytes(folder / TENSORS)
    if sha256(tensors).hexdigest() != description["sha256"]:
        raise StudyError(
            f"{folder / TENSORS} is not the file that {DESCRIPTION} describes",
            "its content must have the SHA-256 that is noted there",
            REMEDY,
        )
    try:
        model = TrainedModel(
            features=description["features"],
            image_size=description["image_size"],
            channels=description["channels"],
            classes=tuple(description["classes"]),
            parameters=np.asarray(load(tensors)["parameters"], dtype=np.float64),
            priors=None if description["priors"] is None else tuple(description["priors"]),
            facts=description["facts"],
        )
        key = model.extractor.key
        blank = np.zeros((1, model.extractor.dimension), dtype=np.float32)
        model.decide(model.head.probabilities(model.parameters, blank))
    except (FedveilError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise StudyError(
            f"{folder} holds no usable model ({error})", "its parts must fit together", REMEDY
        ) from error
    if key != description["extractor"]:
        raise StudyError(
            f"the model in {folder} was trained on features {description['extractor']!r}",
            f"this version of fedveil makes {key!r}",
            "use the version that trained it, or train again",
        )
    return model


_FIELDS: dict[str, type | tuple[type, ...]] = {
    "network": str,
    "features": str,
    "extractor": str,
    "image_size": int,
    "channels": int,
    "classes": list,
    "priors": (list, type(None)),
    "sha256": str,
    "facts": dict,
}


def _described(path: Path) -> dict[str, Any]:
    """Read and check ``model.json``."""
    try:
        description = json.loads(_bytes(path))
    except ValueError as error:
        raise StudyError(f"{path} is not JSON ({error})", "it describes the model", REMEDY) from error
    version = description.get("format") if isinstance(description, dict) else None
    if version != FORMAT:
        raise StudyError(
            f"{path} has format {version!r}",
            f"this version of fedveil reads format {FORMAT}",
            "use the version that wrote it",
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(description.get(name, ...), kind)]
    if wrong:
        raise StudyError(f"{path} lacks a usable {', '.join(wrong)}", "every field is needed", REMEDY)
    if description["network"] != "linear" or not all(
        isinstance(name, str) for name in description["classes"]
    ):
        raise StudyError(
            f"{path} describes a {description['network']!r} network",
            "only linear heads are kept this way",
            REMEDY,
        )
    return dict(description)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StudyError(
            f"{path} cannot be read ({error.strerror})", f"a model is {DESCRIPTION} with {TENSORS}", REMEDY
        ) from error


def _write(path: Path, content: bytes) -> None:
    """Write beside the file's place, sync, then rename into it."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
