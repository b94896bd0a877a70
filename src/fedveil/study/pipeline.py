"""What a study trains: the model, its inputs, and the form in which it is stored."""

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fedveil.data import ArrayImages, Dataset, Embeddings
from fedveil.data.annotations.groups import declared, groups_of
from fedveil.data.cache import StoredRows
from fedveil.errors import DataError, InvalidValue
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    ClassHead,
    FindingsHead,
    FindingsLearner,
    GradesHead,
    HeldOut,
    ImageSource,
    Learner,
    Model,
    NetworkSizes,
    Sizes,
    Statistics,
)
from fedveil.learning.degrade import VERSION as DEGRADED
from fedveil.learning.degrade import degraded
from fedveil.learning.encoders import PRECOMPUTED, FeatureExtractor, feature_extractor
from fedveil.study.features.apart import Inside, stored_apart
from fedveil.study.features.isolation import Change, Readable, Rows, Stored, computed
from fedveil.study.progress import Progress
from fedveil.study.results.public_start import load_start
from fedveil.study.results.trained_model import TrainedModel
from fedveil.study.settings.schema import Study

if TYPE_CHECKING:
    from fedveil.learning import NetworkModel

__all__ = ["LinearTask", "NetworkTask", "Task", "make_task", "model_of", "sizes_of", "views_of"]

PIXELS = "pixels 1"
"""The key of decoded images in the cache; their digests name everything else that pixels depend on."""
PIXELS_STORED = 1 << 33
"""Bytes of decoded images that are stored at most."""

log = logging.getLogger("fedveil.site")
Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Features = npt.NDArray[np.float32] | StoredRows


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task(ABC):
    """A study's model together with its images.

    Attributes:
        study: the resolved study.
        dataset: the images with labels and patients.
    """

    study: Study
    dataset: Dataset

    @property
    @abstractmethod
    def model(self) -> Model:
        """The model, which is public."""

    @abstractmethod
    def learner(self, rows: Indices) -> Learner:
        """One site's learner over these images."""

    @abstractmethod
    def probabilities(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities (k, classes) of these images."""

    def held_out(self, rows: Indices) -> HeldOut | None:
        """The images that one site tests on; None if there are none, or the study releases nothing about them."""
        if not len(rows) or not self.study.privacy.about_held_out:
            return None
        cohort, attribute = self.dataset.cohort("held-out", rows), self.study.data.subgroup
        column = cohort.attributes.get(attribute)
        groups = groups_of(attribute, self.study.data.subgroup_values)
        return HeldOut(
            lambda parameters: self.scores(parameters, rows),
            cohort.labels,
            cohort.patients,
            classes=len(self.dataset.classes),
            unit=self.study.privacy.unit,
            grades=self.dataset.task == "grades",
            strata=None if column is None else declared(attribute, column, groups),
        )

    def scores(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities of images whose sum is released: an unreadable image must not affect the others."""
        return self.probabilities(parameters, rows)

    def trained(self, parameters: Vector, statistics: Statistics | None) -> TrainedModel:
        """The model as `predict` needs it."""
        return TrainedModel.of(
            self.study,
            classes=self.dataset.classes,
            channels=self.dataset.images.channels,
            parameters=parameters,
            frequencies=None if statistics is None else statistics.priors,
            task=self.dataset.task,
        )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class LinearTask(Task):
    """A linear head on frozen features of every image.

    Attributes:
        extractor: the frozen public feature extractor.
        head: the model trained on them.
        features: (n, d) raw features, one row per image.
        degraded: the same for the images' degraded views, for the calibration release; None without one.
    """

    extractor: FeatureExtractor
    head: ClassHead | FindingsHead
    features: Features
    degraded: Features | None = None

    @property
    def model(self) -> Model:
        """The head."""
        return self.head

    def learner(self, rows: Indices) -> Learner:
        """One site's learner over the features of these images."""
        cohort, unit = self.dataset.cohort("site", rows), self.study.privacy.unit
        degraded = None if self.degraded is None else self.degraded[rows]
        features, labels, patients = self.features[rows], cohort.labels, cohort.patients
        if isinstance(self.head, FindingsHead):
            return FindingsLearner(self.head, features, labels, patients, unit=unit, degraded=degraded)
        return CentredLearner(self.head, features, labels, patients, unit=unit, degraded=degraded)

    def probabilities(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities (k, classes) of these images."""
        return self.head.probabilities(parameters, self.features[rows])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class NetworkTask(Task):
    """A network trained on images, or on the output of its frozen part.

    Attributes:
        network: the trained network.
        images: the inputs of the trained part, by row of the data set.
    """

    network: "NetworkModel"
    images: ImageSource

    @property
    def model(self) -> Model:
        """The network."""
        return self.network

    def learner(self, rows: Indices) -> Learner:
        """One site's learner over these images."""
        from fedveil.learning import NetworkLearner, Views

        cohort, settings = self.dataset.cohort("site", rows), self.study.training
        return NetworkLearner(
            self.network,
            Rows(self._readable, rows),
            cohort.labels,
            cohort.patients,
            unit=self.study.privacy.unit,
            clipping=settings.clipping,
            views=Views(settings.views, flip=settings.flip),
        )

    def probabilities(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities (k, classes) of these images."""
        return self.network.probabilities(parameters, Rows(self.images, rows), len(rows))

    def scores(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities; an unreadable image counts as black."""
        return self.network.probabilities(parameters, Rows(self._readable, rows), len(rows))

    @property
    def _readable(self) -> ImageSource:
        side = self.study.data.image_size
        return Readable(self.images, (self.dataset.images.planes, side, side))


def _extractor(study: Study, dataset: Dataset) -> FeatureExtractor:
    return feature_extractor(
        study.model.features,
        image_size=study.data.image_size,
        channels=dataset.images.channels,
        whitened=study.model.whitened,
        dimension=study.model.dimension,
        encoder=study.model.encoder.spec(study.model.features),
        precision=study.training.precision,
        slices=study.data.slices,
    )


def model_of(study: Study, dataset: Dataset) -> Model:
    """The study's model for this data; no image has to be read for its sizes.

    Raises:
        InvalidValue: there is no such model, or it cannot be trained privately. Nothing has been charged yet.
    """
    return _network(study, dataset) if study.model.network != "linear" else _head(study, dataset)


def sizes_of(study: Study, classes: int, channels: int) -> Sizes:
    """The sizes of the study's model, computed without building it: no weights are read, nothing large is allocated.

    Raises:
        InvalidValue: there is no such model.
    """
    if study.model.network == "linear":
        data, names = study.data, ("",) * classes
        empty = Dataset.empty(names, channels=channels, image_size=data.image_size, task=data.meaning)
        return _head(study, empty)
    return NetworkSizes.of(
        study.model.network,
        classes=classes,
        channels=study.data.slices or channels,
        image_size=study.data.image_size,
        trained_blocks=study.model.trained_blocks,
        trained=study.model.trained,
        findings=study.data.meaning == "findings",
        grades=study.data.meaning == "grades",
    )


def _head(study: Study, dataset: Dataset) -> ClassHead | FindingsHead:
    blocks, classes, start = (
        _extractor(study, dataset).blocks,
        len(dataset.classes),
        load_start(study, dataset),
    )
    centred = study.training.method != "one-shot"
    if dataset.task == "findings":
        return FindingsHead(blocks, classes, centred=centred, start=start)
    if dataset.task == "grades":
        return GradesHead(blocks, classes, centred=centred, start=start)
    return CentredHead(blocks, classes, centred=centred, start=start)


def _network(study: Study, dataset: Dataset) -> "NetworkModel":
    from fedveil.learning import NetworkModel  # here, since linear heads do without torch

    return NetworkModel(
        study.model.network,
        classes=len(dataset.classes),
        channels=study.data.slices or dataset.images.channels,
        image_size=study.data.image_size,
        seed=study.study.seed,
        trained_blocks=study.model.trained_blocks,
        trained=study.model.trained,
        findings=dataset.task == "findings",
        grades=dataset.task == "grades",
        start=load_start(study, dataset),
    )


def make_task(study: Study, dataset: Dataset, progress: Progress, apart: Inside | None = None) -> Task:
    """Build the study's model, and compute or read from the cache whatever does not change in training.

    With ``apart``, a linear head's features are computed by another process, in this context.
    """
    if study.model.network != "linear":
        return _network_task(study, dataset, progress)
    return _linear_task(study, dataset, progress, apart)


def _network_task(study: Study, dataset: Dataset, progress: Progress) -> Task:
    """Only a frozen part is run in advance; a network without one reads its images when needed."""
    network = _network(study, dataset)
    images: ImageSource = dataset.images
    if network.frozen is not None:
        progress.stage("features", len(dataset))
        shape = network.before(
            np.zeros((1, dataset.images.planes, *(study.data.image_size,) * 2), np.float32)
        ).shape

        def compute(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            return network.before(pixels).reshape(len(pixels), -1)

        (kept,) = computed({network.key: compute}, dataset, progress, row_bytes=4 * math.prod(shape))
        images = Stored(kept, shape[1:])
    elif not isinstance(images, ArrayImages):
        images = _decoded(dataset, progress)
    return NetworkTask(study=study, dataset=dataset, network=network, images=images)


def _decoded(dataset: Dataset, progress: Progress) -> ImageSource:
    """The images, decoded once rather than in each round and evaluation, if their pixels do not take too much disk."""
    images, shape = dataset.images, (dataset.images.planes, *(dataset.images.size,) * 2)
    if not len(images) or 4 * math.prod(shape) * len(images) > PIXELS_STORED:
        return images
    progress.stage("decoding", len(dataset))
    try:
        views: dict[str, Change] = {PIXELS: lambda pixels: pixels.reshape(len(pixels), -1)}
        (kept,) = computed(views, dataset, progress, row_bytes=4 * math.prod(shape))
    except DataError as error:  # read when needed: then it counts as black, and leaves the others alone
        log.warning("images are decoded whenever they are read: %s", error)
        return images
    return Stored(kept, shape)


def views_of(study: Study, dataset: Dataset) -> dict[str, Change]:
    """What a linear head needs of each image, by its key in the cache: features, and those of the degraded view."""
    extractor = _extractor(study, dataset)
    views: dict[str, Change] = {extractor.key: extractor}
    if study.privacy.calibration_share > 0:
        views[f"{extractor.key} {DEGRADED}"] = lambda images: extractor(degraded(images))
    return views


def _linear_task(study: Study, dataset: Dataset, progress: Progress, apart: Inside | None) -> Task:
    extractor, head = _extractor(study, dataset), _head(study, dataset)
    found: Sequence[Features]
    if study.model.features == PRECOMPUTED:
        found = [_vectors(dataset, extractor.dimension)]
    else:
        progress.stage("features", len(dataset))
        lengths = None if apart is None else stored_apart(study, dataset, progress, apart)
        found = computed(views_of(study, dataset), dataset, progress, lengths=lengths)
    seen = found[1] if len(found) > 1 else None
    return LinearTask(
        study=study, dataset=dataset, extractor=extractor, head=head, features=found[0], degraded=seen
    )


def _vectors(dataset: Dataset, dimension: int) -> npt.NDArray[np.float32]:
    """The data's embeddings; they have no degraded views."""
    images = dataset.images
    if not len(dataset):
        return np.empty((0, dimension), np.float32)
    found = images.dimension if isinstance(images, Embeddings) else None
    if not isinstance(images, Embeddings) or found != dimension:
        raise InvalidValue(
            f"{dataset.name} holds {'pixels' if found is None else f'embeddings of {found} numbers'}",
            f"the study's features are precomputed vectors of {dimension} numbers",
            "use embeddings from the same encoder at every hospital",
        )
    return images.vectors(np.arange(len(images)))
