"""A trained model on disk, ``model.json`` and ``model.safetensors``, and its application to new images."""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedveil.data import Problem, Reading, Window, check_window, read_unlabelled
from fedveil.data.embeddings import as_vectors
from fedveil.data.formats.arrays import array_of, as_pixels
from fedveil.data.options import MEGAPIXELS, Axis
from fedveil.data.windows import FILE
from fedveil.errors import FedveilError, StudyError
from fedveil.io import write_atomic, write_json
from fedveil.learning import CentredHead, ClassHead, FindingsHead, GradesHead, decide, decide_findings
from fedveil.learning.encoders import PRECOMPUTED, EncoderSpec, FeatureExtractor, feature_extractor
from fedveil.learning.encoders.device import Precision
from fedveil.learning.padded_batches import InMemory
from fedveil.study.results.own_outputs import as_saved, shown
from fedveil.study.settings.model import NETWORK
from fedveil.study.settings.schema import Study

if TYPE_CHECKING:
    from fedveil.learning import NetworkModel

__all__ = [
    "Predictions",
    "TrainedModel",
    "finding_cells",
    "finding_columns",
    "predict",
    "prediction_cells",
    "prediction_columns",
]

Vector = npt.NDArray[np.float64]
VERSION = 1
BATCH = 256


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedModel:
    """A trained model, with everything that prediction needs.

    Attributes:
        features: name of the feature extractor; "none" for a network.
        whitened: whether its features are whitened with synthetic images.
        network: name of the network; "linear" for a head on features.
        trained_blocks: number of trained blocks of a pretrained network; the others are as published.
        trained: what was trained of a network of timm, see `fedveil.learning.NetworkModel`.
        image_size: pixels along each side.
        channels: 1 or 3.
        window: the stored values that map to black and white.
        max_megapixels: the largest image that is decoded.
        slices, axis, spacing: how volumes are cut into slices; None, "axial" and None for images.
        classes: names of the classes.
        frequencies: (classes,) released class frequencies of training, which decisions divide by; equal if none were
            released.
        parameters: the whole parameter vector.
        dimension: length of precomputed features; None for others, whose length is fixed.
        task: "classes", "grades", or "findings", whose probabilities do not sum to 1.
        encoder: an encoder that is not built in, as `EncoderSpec.to_dict` writes it; None for others.
        precision: of the frozen feature extractor.
        start: hash of the public model that training was pulled towards; None without one.
    """

    features: str
    whitened: bool = False
    network: str = "linear"
    trained_blocks: int = 0
    trained: str = "all"
    image_size: int
    channels: int
    classes: tuple[str, ...]
    frequencies: Vector
    parameters: Vector
    window: Window = FILE
    max_megapixels: float = MEGAPIXELS
    slices: int | None = None
    axis: Axis = "axial"
    spacing: tuple[float, float] | None = None
    dimension: int | None = None
    task: str = "classes"
    encoder: Mapping[str, Any] | None = None
    precision: Precision = "float32"
    start: str | None = None

    @classmethod
    def of(
        cls,
        study: Study,
        *,
        classes: tuple[str, ...],
        channels: int,
        parameters: Vector,
        frequencies: Vector | None = None,
        task: str = "classes",
    ) -> Self:
        """A study's model for images of these channels, and classes of these frequencies: equal ones if None."""
        equal = 0.5 if task == "findings" else 1 / len(classes)
        encoder = study.model.encoder.spec(study.model.features)
        return cls(
            features=study.model.features,
            whitened=study.model.whitened,
            network=study.model.network,
            trained_blocks=study.model.trained_blocks,
            trained=study.model.trained,
            image_size=study.data.image_size,
            channels=channels,
            classes=classes,
            frequencies=np.full(len(classes), equal) if frequencies is None else frequencies,
            parameters=parameters,
            window=study.data.window,
            max_megapixels=study.data.max_megapixels,
            slices=study.data.slices,
            axis=study.data.axis,
            spacing=study.data.spacing,
            dimension=study.model.dimension,
            task=task,
            encoder=None if encoder is None else encoder.to_dict(),
            precision=study.training.precision,
            start=study.model.start_sha256 or None,
        )

    @property
    def reading(self) -> Reading:
        """How an image is preprocessed to match the training images."""
        return Reading(
            channels=self.channels,
            window=self.window,
            max_megapixels=self.max_megapixels,
            slices=self.slices,
            axis=self.axis,
            spacing=self.spacing,
        )

    @property
    def fits(self) -> bool:
        """Whether the numbers of parameters and frequencies match the model."""
        shapes = self.parameters.shape, self.frequencies.shape
        return shapes == ((self.model.parameters,), (len(self.classes),))

    @property
    def frequencies_released(self) -> bool:
        """Whether the frequencies were released: those that are only assumed are exactly equal."""
        equal = 0.5 if self.findings else 1 / len(self.classes)
        return bool((self.frequencies != equal).any())

    def save(self, folder: Path) -> None:
        """Write both files, each atomically."""
        arrays = {"parameters": self.parameters, "frequencies": self.frequencies}
        write_atomic(folder / "model.safetensors", lambda file: file.write(save_tensors(arrays)))
        described = {k: v for k, v in asdict(self).items() if k not in arrays and v is not None}
        own = shown(self.model, self.parameters)
        write_json(folder / "model.json", {"version": VERSION, "extractor": self._key, **own, **described})

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a model; `StudyError` if it is missing, damaged or of another version."""
        try:
            described: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
            arrays = load_tensors((folder / "model.safetensors").read_bytes())
        except FileNotFoundError as error:
            raise StudyError(
                f"{error.filename} does not exist",
                "a model consists of two files of a finished run",
                "check the path",
            ) from None
        except (ValueError, UnicodeDecodeError, SafetensorError) as error:
            raise _damaged(folder, str(error)) from None
        if not isinstance(described, dict) or described.pop("version", None) != VERSION:
            raise StudyError(
                f"{folder / 'model.json'} is of another version",
                f"this fedveil reads version {VERSION}",
                "use the fedveil that wrote it",
            )
        key, outputs = described.pop("extractor", None), described.pop("outputs", None)
        try:
            fields: dict[str, Any] = described | arrays | {"classes": tuple(described["classes"])}
            fields["window"] = check_window(described.get("window", FILE))
            spacing = described.get("spacing")
            fields["spacing"] = None if spacing is None else (float(spacing[0]), float(spacing[1]))
            model = cls(**fields)
            model.reading.check()
            if not re.fullmatch(NETWORK, model.network):
                raise ValueError(f"no network is called {model.network!r}")
            fits = model.fits
            same = key == model._key or (key is None and model.network.startswith("timm:"))  # of version 0.1
        except (KeyError, ValueError, TypeError, AttributeError, FedveilError) as error:
            if ":" in str(described.get("network")) and isinstance(error, FedveilError):
                raise  # the package, its weights or the function are missing here; the files are intact
            raise _damaged(folder, str(error)) from None
        if not fits:
            raise _damaged(folder, "its sizes disagree")
        same = same and as_saved(model.model, model.parameters, outputs)
        if not same and model.network != "linear":
            raise StudyError(
                f"the network {model.network} in {folder} was trained with other layers or weights than are built here",
                "what is not trained is not in its files, and must be the same",
                "use the same version of the function or package, and the same public weights",
            )
        if not same:
            raise StudyError(
                f"the model in {folder} was trained on features {key!r}",
                f"this fedveil computes {model._key!r}",
                "use the fedveil that wrote it",
            )
        return model

    @property
    def _key(self) -> str | None:
        """Identifies the version of the features, or of what is not trained of a network that is not built in."""
        if self.network == "linear" or isinstance(self.model, ClassHead | FindingsHead):
            return self.extractor.key
        return self.model.fixed

    @cached_property
    def extractor(self) -> FeatureExtractor:
        """The frozen feature extractor of a linear head."""
        return feature_extractor(
            self.features,
            image_size=self.image_size,
            channels=self.channels,
            whitened=self.whitened,
            dimension=self.dimension,
            encoder=None if self.encoder is None else EncoderSpec.from_dict(self.encoder),
            precision=self.precision,
            slices=self.slices,
        )

    @cached_property
    def model(self) -> "ClassHead | FindingsHead | NetworkModel":
        """The model that the parameters belong to; a network's public weights are found by its name."""
        if self.network == "linear" and self.findings:
            return FindingsHead(self.extractor.blocks, len(self.classes))
        if self.network == "linear" and self.task == "grades":
            return GradesHead(self.extractor.blocks, len(self.classes))
        if self.network == "linear":
            return CentredHead(self.extractor.blocks, len(self.classes))
        from fedveil.learning import NetworkModel  # here, since linear heads do without torch

        return NetworkModel(
            self.network,
            classes=len(self.classes),
            channels=self.slices or self.channels,
            image_size=self.image_size,
            trained_blocks=self.trained_blocks,
            trained=self.trained,
            findings=self.findings,
        )

    def probabilities(self, images: npt.NDArray[np.float32]) -> Vector:
        """Class probabilities (k, classes) of images (k, channels or slices, size, size) in [0, 1]."""
        if isinstance(self.model, ClassHead | FindingsHead):
            return self.model.probabilities(self.parameters, self.extractor(images))
        return self.model.probabilities(self.parameters, InMemory(self.model.before(images)), len(images))

    @property
    def findings(self) -> bool:
        """Whether classes are findings, any number of which an image may have."""
        return self.task == "findings"

    def decide(self, probabilities: Vector) -> npt.NDArray[np.int64]:
        """Predicted classes or grades (n,) under equal frequencies, or findings (n, K) of 1 and 0."""
        if self.findings:
            return decide_findings(probabilities, self.frequencies)
        return decide(probabilities, self.frequencies)

    def predict_proba(self, images: Any) -> Vector:
        """Class probabilities (n, classes) under the class frequencies of training.

        Args:
            images: as `fedveil.Dataset.from_arrays` takes them, of any size; or embeddings (n, d), for a model that
                was trained on embeddings.
        """
        if self.features == PRECOMPUTED:
            return self.probabilities(as_vectors(array_of(images)))
        pixels = as_pixels(images, self.image_size, self.reading)
        parts = [self.probabilities(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH)]
        return np.concatenate([np.empty((0, len(self.classes))), *parts])

    def predict(self, images: Any) -> npt.NDArray[Any]:
        """The predicted class of each image, (n,), as a name; see `decide` and `predict_proba`.

        For findings (n, K) of True and False, in the order of ``classes``.
        """
        if self.findings:
            found: npt.NDArray[Any] = self.decide(self.predict_proba(images)) == 1
            return found
        return np.array(self.classes)[self.decide(self.predict_proba(images))]


@dataclass(frozen=True, slots=True)
class Predictions:
    """Predictions as CSV text, and the unreadable images, which are not in it."""

    csv: str
    problems: tuple[Problem, ...]


def predict(
    model: Path,
    source: str,
    base: Path = Path(),
    columns: Mapping[str, str | Sequence[str]] | None = None,
    preset: str = "",
) -> Predictions:
    """Classify the images of a folder or manifest; labels are neither needed nor read.

    Args:
        model: folder of a trained model.
        source: a folder, a manifest or one image, relative to ``base``.
        base: where relative paths start.
        columns: a manifest's column names.
        preset: a well-known table, see `fedveil.data.Options`.

    Returns:
        One row per image: its name, the predicted class, one probability per class under the class frequencies of
        training, and one score per class, which is the probability under equal frequencies. The predicted class has
        the largest score, not the largest probability: training frequencies are released with the model and divided
        out.
    """
    trained = TrainedModel.load(model)
    if trained.features == PRECOMPUTED:
        raise StudyError(
            f"the model in {model} takes embeddings",
            "images can only be classified by models that were trained on images",
            "classify embeddings from Python: fedveil.load(directory).model.predict(embeddings)",
        )
    images = read_unlabelled(
        source, trained.image_size, trained.reading, base=base, columns=columns, preset=preset
    )
    text, problems = io.StringIO(), list(images.problems)
    writer = csv.writer(text, lineterminator="\n")
    columns_of = finding_columns if trained.findings else prediction_columns
    writer.writerow(["image", *columns_of(trained.classes)])
    for start in range(0, len(images.names), BATCH):
        asked = np.arange(start, min(start + BATCH, len(images.names)))
        rows, pixels, unreadable = images.read(asked)
        problems += unreadable
        if not len(rows):
            continue
        probabilities = trained.probabilities(pixels)
        predicted = trained.decide(probabilities)
        if trained.findings:
            said = finding_cells(probabilities, predicted)
        else:
            said = prediction_cells(probabilities, predicted, trained.classes, trained.frequencies)
        for row, cells in zip(rows, said, strict=True):
            writer.writerow([images.names[row], *cells])
    return Predictions(text.getvalue(), tuple(problems))


def prediction_columns(classes: Sequence[str]) -> list[str]:
    """Names of the columns that `prediction_cells` fills."""
    return ["predicted", *(f"prob:{name}" for name in classes), *(f"score:{name}" for name in classes)]


def prediction_cells(
    probabilities: Vector, predicted: npt.NDArray[np.int64], classes: Sequence[str], frequencies: Vector
) -> Iterator[list[str]]:
    """The predicted class of each image, its probabilities, and its scores, the largest of which decides."""
    shifted = np.asarray(probabilities, dtype=np.float64) / frequencies
    scores = shifted / shifted.sum(axis=1, keepdims=True)
    for code, row, own in zip(predicted, probabilities, scores, strict=True):
        yield [classes[code], *(f"{value:.6f}" for value in (*row, *own))]


def finding_columns(classes: Sequence[str], *, truth: bool = False) -> list[str]:
    """Names of the columns that `finding_cells` fills."""
    kinds = ("label", "predicted", "prob") if truth else ("predicted", "prob")
    return [f"{kind}:{name}" for kind in kinds for name in classes]


def finding_cells(
    probabilities: Vector, predicted: npt.NDArray[np.int64], labels: npt.NDArray[Any] | None = None
) -> Iterator[list[str]]:
    """For each image 1 or 0 for each finding, and its probability; before them its label, blank if it is unknown."""
    for number, (called, row) in enumerate(zip(predicted, probabilities, strict=True)):
        known = [] if labels is None else [str(one) if one >= 0 else "" for one in labels[number].tolist()]
        yield [*known, *map(str, called.tolist()), *(f"{value:.6f}" for value in row)]


def _damaged(folder: Path, why: str) -> StudyError:
    return StudyError(
        f"the model in {folder} is damaged ({why})", "both of its files must be intact", "train it again"
    )
