"""What a study trains: the model, its view of the images, and what a trained one is kept as."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, FeatureCache
from fedveil.learning import (
    FeatureExtractor,
    Learner,
    LinearHead,
    LinearLearner,
    feature_extractor,
)
from fedveil.study.progress import Progress
from fedveil.study.settings import Study

__all__ = ["Task", "dimension_of", "make_task"]

BATCH = 256
"""Images read and pushed through an extractor at a time, which bounds the memory that large sets need."""

Vector = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task:
    """A linear head on frozen features of every image.

    Attributes:
        study: the resolved study.
        dataset: labels and patients of the images.
        extractor: the frozen, public feature extractor.
        head: the model.
        features: (n, d) normalised features, one row an image.
    """

    study: Study
    dataset: Dataset
    extractor: FeatureExtractor
    head: LinearHead
    features: npt.NDArray[np.float32]

    def learner(self, rows: Indices) -> Learner:
        """One site's learner over these images."""
        cohort = self.dataset.cohort("site", rows)
        return LinearLearner(
            self.head, self.features[rows], cohort.labels, cohort.patients, unit=self.study.privacy.unit
        )

    def initial(self) -> Vector:
        """Parameters before the first round."""
        return self.head.initial()

    def probabilities(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities (k, classes) of these images."""
        return self.head.probabilities(parameters, self.features[rows])


def _extractor(study: Study, dataset: Dataset) -> FeatureExtractor:
    return feature_extractor(study.model.features, image_size=study.data.image_size, channels=dataset.images.channels)


def dimension_of(study: Study, dataset: Dataset) -> int:
    """Number of parameters of the study's model on this data."""
    return LinearHead(_extractor(study, dataset).dimension, len(dataset.classes)).dimension


def make_task(study: Study, dataset: Dataset, progress: Progress) -> Task:
    """Extract the features of every image of the study, or take them from the cache."""
    extractor = _extractor(study, dataset)
    progress.stage("features", len(dataset))

    def compute(rows: Indices) -> npt.NDArray[np.float32]:
        parts = []
        for batch in np.array_split(rows, max(1, math.ceil(len(rows) / BATCH))):
            parts.append(extractor(dataset.images.read(batch)))
            progress.advance(len(batch))
        return np.concatenate(parts)

    digests = dataset.images.digest(np.arange(len(dataset)))
    features = FeatureCache().get_or_compute(extractor.key, digests, compute)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    head = LinearHead(extractor.dimension, len(dataset.classes))
    return Task(study=study, dataset=dataset, extractor=extractor, head=head, features=features)
