"""A network trained in a hospital: sums of gradients, clipped per patient, over the images on disk.

`NetworkModel` is public: the network's structure, its frozen pretrained part and its initial parameters follow from
names and a seed. `NetworkLearner` holds one hospital's images behind it. Several views of an image (augmentation
multiplicity, De et al., 2204.13650) count as one image of its patient: they are averaged before clipping.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import (
    Clipping,
    PrivateGradients,
    Trial,
    check_private,
    dimension,
    flatten_parameters,
    load_flat,
    try_out,
)
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.logistic import Unit
from fedveil.learning.models.network_labels import LONGEST_LOGITS, NetworkLabels, OfLabels
from fedveil.learning.models.protocol import check_sent
from fedveil.learning.models.public_start import PublicStart
from fedveil.learning.networks import Centred, fixed_key, is_own, layers_of, split_frozen
from fedveil.learning.padded_batches import SIZE, Images, ImageSource, batches, filled, filled_up
from fedveil.learning.ranges import check_centre
from fedveil.learning.released.score_statistics import Certainty
from fedveil.learning.unit_batches import first_of_runs, rows_by_units
from fedveil.learning.unit_weights import image_shares
from fedveil.learning.views import Views

__all__ = ["ImageSource", "NetworkLearner", "NetworkModel"]

BATCH = 256
"""Images whose gradients are taken at once."""
TRIED = (SIZE, 3 * SIZE, BATCH)
"""Numbers of images, among the multiples of `SIZE` that training runs, at which one's own network is tried too."""


class NetworkModel(OfLabels):
    """A network by name; implements `fedveil.learning.Model`.

    Parameters are one offset of the logits per class or finding, see `.network_labels`, the centre of the features if
    the network has one (see `Centred`), then the trained part.

    The leading layers whose parameters are not trained are the public *frozen part*: its output for an image is
    computed once, not in every round. The *body* is the rest.

    Args:
        name: as in the study file: "cnn", "cnn3d", "resnet18", "densenet121", "efficientnet-lite0", "timm:NAME",
            "module:package.function".
        classes: number of classes or findings.
        channels: of the images; of volumes their slices.
        image_size: pixels along each side.
        seed: public; of the initial parameters only.
        trained_blocks: number of trained blocks of EfficientNet-Lite0, counted from the last.
        trained: what is trained of "timm:NAME": "all", "last:N", "norms" or "lora:R".
        findings: whether an image may have any number of them.
        grades: whether they are ordered.
        start: the public model that training begins from; None for none.

    Raises:
        InvalidValue: the network cannot be built, or no patient's contribution to its gradient can be bounded.
    """

    def __init__(
        self,
        name: str,
        *,
        classes: int,
        channels: int,
        image_size: int,
        seed: int = 0,
        trained_blocks: int = 1,
        trained: str = "all",
        findings: bool = False,
        grades: bool = False,
        start: PublicStart | None = None,
    ) -> None:
        self.name, self.classes, self.image_size, self.start = name, classes, image_size, start
        self.labels = NetworkLabels.of(classes, findings=findings, grades=grades)
        self.image_shape = (channels, image_size, image_size)
        module = layers_of(name, classes, channels, image_size, seed, trained_blocks, trained=trained)
        self.notices = check_private(module)  # in training mode, where batch norm would follow the batch
        self.module = module.eval()
        frozen, self.body = split_frozen(self.module)
        self.frozen = frozen if len(frozen) else None
        self.key = f"{name} before its last {trained_blocks} blocks, {image_size}x{channels}, version 2"
        layers = list(self.body)
        self._centred = next((layer for layer in layers if isinstance(layer, Centred)), None)
        self._below = nn.Sequential(*layers[: layers.index(self._centred)]) if self._centred else None
        self._blocks = self._centred.blocks if self._centred else ()
        self._initial = flatten_parameters(self.body).double().numpy()
        self._lock = threading.RLock()

    @functools.cached_property
    def trial(self) -> Trial:
        """The results of running the network on synthetic inputs.

        Raises:
            InvalidValue: no patient's contribution to its gradient can be bounded.
        """
        with self._lock:
            trial = try_out(self.module, self.image_shape, also=TRIED if is_own(self.name) else ())
        shapes = [leaf.shape for leaf in trial.calls.results.leaves]
        if shapes != [(1, self.classes)]:
            raise InvalidValue(
                f"the network {self.name} returns {shapes} for one image",
                f"it must return one tensor of logits, {(1, self.classes)}",
                "let it return (k, classes) for k images",
            )
        return trial

    @functools.cached_property
    def fixed(self) -> str | None:
        """Identifies what is not trained, where the network's name does not; None for built-in networks."""
        return fixed_key(self.module) if ":" in self.name else None

    @property
    def trained(self) -> int:
        """Number of trained parameters."""
        return dimension(self.body)

    @property
    def parameters(self) -> int:
        """Length of the whole parameter vector."""
        return self.classes + self._centre + self.trained

    @property
    def _centre(self) -> int:
        """Length of the centre."""
        return sum(self._blocks)

    @property
    def statistics_size(self) -> int:
        """Counts, and what is released of the features that are centred."""
        return self.labels.statistics_size(self._centre)

    def initial(self) -> Vector:
        """Those of the start, of the seed, or of a pretrained network."""
        return (self._initial if self.start is None else self.start.trained).copy()

    def join(self, statistics: Any, trained: Vector, shift: Vector | None = None) -> Vector:
        """The offset, by default that of training; the centre, of a start or of statistics; and the trained part."""
        offset = self.labels.before(statistics) if shift is None else shift
        centre = np.zeros(self._centre)
        if self.start is not None:  # released means are of features under other weights
            centre = self.start.centre
        elif self._blocks and statistics is not None:
            centre = statistics.centre(self._blocks)
        return np.concatenate([offset, centre, trained])

    def read_statistics(self, released: Vector, noise_variance: float) -> Any:
        """Counts, and the means of centred features; other networks need no means."""
        return self.labels.read_statistics(released, noise_variance, self._centre)

    def calibrated(
        self, parameters: Vector, released: Vector, noise_variance: float, statistics: Any
    ) -> tuple[Vector, Certainty]:
        """The model with an offset of the logits; see `.network_labels`."""
        offset, certainty = self.labels.calibrated(released, noise_variance, statistics)
        return np.concatenate([offset, parameters[self.classes :]]), certainty

    def check_frequencies(self, frequencies: Vector) -> None:
        """Refuse frequencies that the labels cannot have; see `fedveil.learning.Model.check_frequencies`."""
        self.labels.check_frequencies(frequencies)

    def check_parameters(self, parameters: Vector) -> None:
        """Refuse a vector that `join` cannot have made; see `fedveil.learning.Model.check_parameters`.

        Offsets are bounded as labels say. The centre is that of a release, or 0.
        """
        self._check_shape(parameters)
        offset, centre, _ = self.split(parameters)
        largest = self.labels.farthest
        if not (np.abs(offset) <= largest * (1 + 1e-9)).all():
            raise InvalidValue(
                f"offsets of the logits reach {np.abs(offset).max():g}",
                f"the model's offsets never exceed {largest:.3g}",
                "send the model of the study",
            )
        check_centre(centre, self._blocks)

    def unshifted(self, parameters: Vector) -> Vector:
        """The same model with an offset of 0."""
        return np.concatenate([np.zeros(self.classes), parameters[self.classes :]])

    def split(self, parameters: Vector) -> tuple[Vector, Vector, Vector]:
        """Offset, centre and trained part of a parameter vector."""
        offset, centre, trained = np.split(parameters, np.cumsum([self.classes, self._centre]))
        return offset, centre, trained

    def recalibrated(
        self, parameters: Vector, frequencies: Vector, released: Vector, noise_variance: float
    ) -> tuple[Vector, Vector]:
        """The model with one hospital's offset; see `fedveil.learning.Model.recalibrated`."""
        offset, own = self.labels.own(parameters[: self.classes], frequencies, released, noise_variance)
        return np.concatenate([offset, parameters[self.classes :]]), own

    def redrawn(self, parameters: Vector, trained_std: float, middle_std: Vector, seed: int) -> Vector:
        """The model with fresh noise; see `fedveil.learning.Model.redrawn`."""
        generator = np.random.default_rng(seed)
        offset, centre, trained = self.split(parameters)
        moved = offset + LONGEST_LOGITS * middle_std * generator.standard_normal(len(offset))
        noisy = trained + trained_std * generator.standard_normal(len(trained))
        return np.concatenate([moved, centre, noisy])

    @contextmanager
    def loaded(self, parameters: Vector) -> Iterator[None]:
        """Set the body's parameters, for one thread at a time."""
        self._check_shape(parameters)
        _, centre, trained = self.split(parameters)
        with self._lock:
            load_flat(self.body, trained)
            if self._centred is not None:
                self._centred.centre.copy_(torch.from_numpy(centre))
            yield

    def _check_shape(self, parameters: Vector) -> None:
        if parameters.shape != (self.parameters,) or not np.isfinite(parameters).all():
            raise InvalidValue(
                f"parameters have shape {parameters.shape}, or are not finite",
                f"this network has {self.parameters} of them",
                "use the model that the study describes",
            )

    def logits(self, parameters: Vector, images: ImageSource, count: int) -> Vector:
        """Logits (count, classes) of all images of a source of inputs for the body."""
        parts = [np.empty((0, self.classes))]
        with self.loaded(parameters), torch.inference_mode():
            for rows in batches(count):
                logits = filled(self.body, images.read(rows)).double()
                parts.append((logits + torch.from_numpy(parameters[: self.classes])).numpy())
        return np.concatenate(parts)

    def probabilities(self, parameters: Vector, images: ImageSource, count: int) -> Vector:
        """Class probabilities (count, classes); see `logits`."""
        return self.labels.probabilities(self.logits(parameters, images, count))

    def features(self, images: ImageSource, count: int) -> Vector | None:
        """Features (count, d) of norm 1 that the untrained network will centre; None if it centres none."""
        if self._centred is None or self._below is None:
            return None
        parts = [np.empty((0, self._centre))]
        with self.loaded(self.join(None, self._initial)), torch.inference_mode():
            for rows in batches(count):
                found = self._centred.unit(filled(self._below, images.read(rows)))
                parts.append(found.double().numpy())
        return np.concatenate(parts)

    def before(self, images: Images) -> Images:
        """The frozen part's output for images (k, channels, size, size); the images themselves if there is none."""
        if self.frozen is None:
            return images
        with self._lock, torch.inference_mode():
            return np.concatenate(
                [filled(self.frozen, images[rows]).numpy() for rows in batches(len(images))]
            )


ROUNDING = 2e-3
"""Fraction of the clip norm that is reserved for rounding in single precision.

If a unit is left out, others move to other batches, whose sums are rounded differently. Only batches of its run
change (`fedveil.learning.unit_batches`), and sums over batches are in double precision, so this does not grow with
the number of units: docs/private-gradients.md has measurements with up to 10,000 of them.
"""


class NetworkLearner:
    """One cohort's images behind a network; implements `fedveil.learning.Learner`.

    Args:
        model: the network; may be shared between learners.
        images: read when needed; inputs of the network's body.
        labels: (n,) class codes, or (n, K) findings.
        patients: (n,) patient codes 0 .. P-1.
        unit: whom one contribution belongs to. ``"site"`` takes the mean over all images and clips the whole.
        clipping: how a unit's gradient is bounded; see `fedveil.learning.gradients.clip_factors`.
        views: views of each image that are averaged before clipping.
    """

    def __init__(
        self,
        model: NetworkModel,
        images: ImageSource,
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        unit: Unit = "patient",
        clipping: Clipping = "automatic",
        views: Views | None = None,
    ) -> None:
        if len(labels) == 0 or len(labels) != len(patients):
            raise InvalidValue(
                f"{len(labels)} labels and {len(patients)} patient codes were given",
                "every image needs one of each, and there must be an image",
                "pass one column of each",
            )
        self._model, self._images, self._clipping = model, images, clipping
        self._labels = model.labels.checked(labels, len(patients))
        groups = {"image": np.arange(len(labels)), "site": np.zeros(len(labels)), "patient": patients}[unit]
        self._groups: Indices = np.unique(groups, return_inverse=True)[1].astype(np.int64)
        self._views = views or Views()
        self._trial = model.trial  # before anything is charged
        self._engines: dict[tuple[float, bytes], PrivateGradients] = {}

    @property
    def dimension(self) -> int:
        """Number of trained parameters."""
        return self._model.trained

    @property
    def units(self) -> int:
        """Number of protected units."""
        return int(self._groups.max()) + 1

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """Refuse parameters that the model cannot have; see `Learner.check_parameters`."""
        check_sent(self._model, parameters, judged=judged)

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """Sum the units' clipped gradients; see `Learner.contribution`.

        They are clipped to slightly less than ``clip_norm``, by `ROUNDING`.
        """
        engine = self._engine(clip_norm / (1 + ROUNDING), parameters[: self._model.classes])
        total = np.zeros(self.dimension)
        with self._model.loaded(parameters):
            for batch in self._batches(parameters, units):
                total += engine.sum(*filled_up(*batch)).vector.double().numpy()
        return total

    def each(self, parameters: Vector, *, clip_norm: float) -> Images:
        """What each unit adds to `contribution`, up to rounding: float32 (units, dimension), for attacks."""
        engine = self._engine(clip_norm / (1 + ROUNDING), parameters[: self._model.classes])
        with self._model.loaded(parameters):
            parts = [engine.each(*batch).numpy() for batch in self._batches(parameters, None)]
        return np.concatenate(parts)

    def _batches(self, parameters: Vector, units: Indices | None) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Views of images, their labels and units, by batches of whole units."""
        views = self._views.draw(parameters, self._model.image_size)
        for rows in rows_by_units(self._groups, self._first, BATCH // self._views.count, units):
            images = torch.from_numpy(self._images.read(rows))
            labels = torch.cat([torch.from_numpy(self._labels[rows])] * len(views))
            members = torch.from_numpy(self._groups[rows]).repeat(len(views))
            yield torch.cat([Views.of(images, view) for view in views]), labels, members

    def _engine(self, bound: float, offset: Vector) -> PrivateGradients:
        """The sums of gradients at a bound and an offset, made once: what a trial shows holds for all rounds."""
        key = bound, offset.tobytes()
        if key not in self._engines:
            engine = PrivateGradients(
                self._model.body,
                self._model.labels.loss(offset),
                bound,
                clipping=self._clipping,
                micro_batch=BATCH,
                trial=self._trial,
            )
            self._engines = {key: engine}
        return self._engines[key]

    def statistics(
        self,
        parameters: Vector,
        units: Indices | None = None,
        *,
        plain: bool = False,  # noqa: ARG002 - there are no degraded views here
    ) -> Vector:
        """Sum counts and the features that a network centres; or scores and counts of a trained one."""
        shares, labels = image_shares(self._groups, units), self._model.labels
        if parameters.size:
            logits = self._model.logits(parameters, self._images, len(self._labels))
            return labels.scored(logits, self._labels, shares)
        features = self._model.features(self._images, len(self._labels))
        return labels.counted(features, self._labels, shares)

    @functools.cached_property
    def _first(self) -> npt.NDArray[np.bool_]:
        return first_of_runs(self._images.read, self._labels, self._groups, BATCH)
