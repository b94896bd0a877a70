"""What a study trains: the model, its view of the images, and what a trained one is kept as."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, FeatureCache
from fedveil.learning import (
    CentredHead,
    CentredLearner,
    ClassStatistics,
    Learner,
)
from fedveil.learning.features import FeatureExtractor, feature_extractor
from fedveil.study.model_file import TrainedModel
from fedveil.study.progress import Progress
from fedveil.study.settings import Study

__all__ = ["Task", "make_task", "model_of"]

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
        model: what is trained on them.
        features: (n, d) raw features, one row an image.
    """

    study: Study
    dataset: Dataset
    extractor: FeatureExtractor
    model: CentredHead
    features: npt.NDArray[np.float32]

    def learner(self, rows: Indices) -> Learner:
        """One site's learner over these images."""
        cohort = self.dataset.cohort("site", rows)
        return CentredLearner(
            self.model, self.features[rows], cohort.labels, cohort.patients, unit=self.study.privacy.unit
        )

    def probabilities(self, parameters: Vector, rows: Indices) -> Vector:
        """Class probabilities (k, classes) of these images."""
        return self.model.probabilities(parameters, self.features[rows])

    def trained(self, parameters: Vector, statistics: ClassStatistics | None) -> TrainedModel:
        """What `predict` needs."""
        classes = self.dataset.classes
        equal = np.full(len(classes), 1 / len(classes))
        return TrainedModel(
            features=self.study.model.features,
            image_size=self.study.data.image_size,
            channels=self.dataset.images.channels,
            classes=classes,
            frequencies=equal if statistics is None else statistics.priors,
            parameters=parameters,
        )


def _extractor(study: Study, dataset: Dataset) -> FeatureExtractor:
    return feature_extractor(
        study.model.features, image_size=study.data.image_size, channels=dataset.images.channels
    )


def model_of(study: Study, dataset: Dataset) -> CentredHead:
    """The study's model for this data; its sizes need no image to be read."""
    return CentredHead(_extractor(study, dataset).blocks, len(dataset.classes))


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
    return Task(
        study=study,
        dataset=dataset,
        extractor=extractor,
        model=model_of(study, dataset),
        features=features,
    )
