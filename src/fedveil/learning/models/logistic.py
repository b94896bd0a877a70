"""A linear classifier on frozen features, and the sum of its per-patient gradients, each clipped by its own length.

Frozen public features with a private linear head: Tramer & Boneh, "Differentially private learning needs
better features" (2011.11660); De et al. (2204.13650); Mehta et al. (2211.13403).

With features x_i, residuals r_i = p(x_i) - y_i and loss weights w_i, a patient p with n_p images has the gradient
``g_p = sum_i w_i r_i x_i^T / n_p``, a few hundred to a few thousand numbers. It is formed, a few patients at a time,
its norm is taken, and it contributes ``g_p min(1, C / ||g_p||)``. That is a function of this patient's images: no
margin, maximum or number of others enters, and rounding does not depend on others in any step
(`fedveil.learning.exact`):

* An image's logits, residual and part of the gradient are made by elementwise operations, in an order that the number
  of features fixes. A unit's images are added up in an order that their number and that of features fix.
* The norm is computed from the same numbers that it divides, in double precision. It errs by less than 1e-14
  of itself, and contributions are clipped to ``(1 - 1e-12) C``: the numbers that are added have norm at most C.
* Clipped gradients are cut to a public grid, so that their sum over up to 2^20 units is exact, whatever its order.

So the sums over a cohort with and without a unit differ by exactly that unit's contribution, of norm at most C. Under
secure aggregation the sum is rounded to the integer grid at random, which `fedveil.privacy.accounting.integer` prices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedveil.errors import InvalidValue
from fedveil.lazy import later
from fedveil.learning.exact import SHORTER, first_sums, grid, softmax
from fedveil.learning.models.checked import (
    checked_codes,
    checked_features,
    checked_findings,
    checked_patients,
    checked_weights,
)
from fedveil.learning.models.learner import Indices, Vector
from fedveil.learning.models.losses.grades import cut_points, grade_probabilities, grade_residuals, neighbours

special = later("scipy.special")

Unit: TypeAlias = Literal["patient", "image", "site"]

LARGEST_PARAMETER = 1e12
CLIP_NORMS = (1e-100, 1e100)
"""Far from where the squares of norms underflow or overflow."""
NUMBERS = 1 << 17
"""Numbers processed at once: fits a processor's cache, and bounds memory."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Multinomial logistic regression on ``features`` numbers, as one flat parameter vector; there is no intercept.

    Two classes share one logit, that of class 1: parameters are w, ``features`` numbers. More classes have one each:
    (w_0, w_1, ...), ``classes * features`` numbers. With ``findings``, classes do not exclude each other: each has a
    logit and a binary logistic regression of its own. With ``grades``, classes are ordered and share one logit, see
    `.losses.grades`.
    """

    features: int
    classes: int
    findings: bool = False
    grades: bool = False

    def __post_init__(self) -> None:
        if self.features < 1 or self.classes < (1 if self.findings else 2):
            raise InvalidValue(
                f"a linear head has {self.features} features and {self.classes} classes",
                "it needs at least one feature and two classes",
                "set data.classes to the findings"
                if self.findings
                else "check the labels: training images of two classes are needed",
            )

    @property
    def logits(self) -> int:
        """Number of logits: 1 for two classes or for grades, otherwise one per class or finding."""
        return 1 if self.grades or (self.classes == 2 and not self.findings) else self.classes

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return self.logits * self.features

    def initial(self) -> Vector:
        """All zeros: every class equally likely. The loss is convex, so the start needs no randomness."""
        return np.zeros(self.dimension)

    def probabilities(self, parameters: npt.ArrayLike, features: npt.NDArray[Any]) -> Vector:
        """Map features (n, features) to class probabilities (n, classes), float64.

        Raises:
            InvalidValue: parameters or features of another shape, or not finite.
        """
        return self.probabilities_of(self.logits_of(parameters, features))

    def logits_of(self, parameters: npt.ArrayLike, features: npt.NDArray[Any]) -> Vector:
        """Map features (n, features) to logits (n, logits), float64; raises as `probabilities` does.

        Each image is summed independently. In a matrix product an image's rounding depends on the number of others;
        if weights cancel, the sign of its logit is pure rounding, and one patient less would change the decisions
        for others.
        """
        weights = self.weights(parameters)
        checked = checked_features(features, self.features)
        step = max(1, NUMBERS // self.features)
        parts = [np.empty((0, self.logits))]
        for start in range(0, len(checked), step):
            columns = checked[start : start + step].T.astype(np.float64, order="C")
            parts.append(logits_by_image(weights, columns).T)
        return np.concatenate(parts)

    def weights(self, parameters: npt.ArrayLike) -> Vector:
        """View parameters as a matrix (logits, features) after checking them.

        Raises:
            InvalidValue: another length, or values that are not finite or absurdly large.
        """
        vector = np.asarray(parameters, dtype=np.float64)
        if vector.shape != (self.dimension,):
            raise InvalidValue(
                f"parameters have shape {vector.shape}",
                f"this model has {self.dimension} of them in one vector",
                "use the same features and classes as in training",
            )
        if not (np.abs(vector) <= LARGEST_PARAMETER).all():
            raise InvalidValue(
                "parameters hold values that are not finite, or larger than 1e12",
                "parameters must be finite and at most 1e12",
                "reduce the learning rate",
            )
        return vector.reshape(self.logits, self.features)

    def probabilities_of(self, logits: Vector) -> Vector:
        """Map logits (n, logits) to class probabilities (n, classes), each image independently.

        Those of findings do not sum to 1.
        """
        if self.findings:
            return np.asarray(special.expit(logits), dtype=np.float64)
        if self.grades:
            return grade_probabilities(logits[:, 0], cut_points(self.classes))
        if self.logits == 1:
            return np.concatenate([special.expit(-logits), special.expit(logits)], axis=1)
        return softmax(logits)

    def residuals(self, logits: Vector, targets: Vector) -> Vector:
        """Derivatives (logits, n) of the images' losses by their logits (logits, n).

        Args:
            logits: (logits, n).
            targets: (logits, n) of 1 for the class or findings of an image, else 0; for grades (2, n), see
                `.cumulative.grade_residuals`.
        """
        if self.grades:
            return grade_residuals(logits, targets)
        return self.probabilities_of(logits.T).T[-self.logits :] - targets


def logits_by_image(weights: Vector, columns: Vector) -> Vector:
    """Logits (logits, n) of images (d, n) under weights (logits, d), each image independently."""
    return np.stack([first_sums(columns * row[:, None]) for row in weights])


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """A few units with all their images; units of one size are neighbours, so that they make regular arrays.

    Attributes:
        features: (d, n). Of u units with m images each: the first image of all, then the second of all, and so on.
        targets: (logits, n), 1 for the class of the image, or for its findings; for grades (2, n).
        weights: (logits, n) or (1, n), of the images in their unit's gradient.
        buckets: (m, u) in order.
    """

    features: Vector
    targets: Vector
    weights: Vector
    buckets: tuple[tuple[int, int], ...]

    def gradients(self, head: LinearHead, weights: Vector, offsets: Vector | float) -> Vector:
        """Each unit's gradient, (logits * d, units), as a function of this unit's images alone.

        A unit that is too large for one piece is cut where the number of features says.
        """
        units, width = sum(count for _, count in self.buckets), len(self.features)
        total = np.zeros((head.logits, width, units))
        step = self.features.shape[1] if units > 1 else max(1, NUMBERS // width)
        for start in range(0, self.features.shape[1], step):
            images = slice(start, start + step)
            features = self.features[:, images]
            logits = logits_by_image(weights, features) + np.reshape(offsets, (-1, 1))
            residuals = head.residuals(logits, self.targets[:, images])
            residuals *= self.weights[:, images]
            buckets = self.buckets if units > 1 else ((features.shape[1], 1),)
            for logit, residual in enumerate(residuals):
                total[logit] += _image_sums(features * residual, buckets)
        return total.reshape(-1, units)


def _image_sums(values: Vector, buckets: tuple[tuple[int, int], ...]) -> Vector:
    """Sums (d, units) of (d, n) over each unit's images, in a tree of elementwise additions that its size fixes."""
    sums, first = [], 0
    for images, units in buckets:
        block = values[:, first : first + images * units].reshape(len(values), images, units)
        sums.append(first_sums(block.transpose(1, 0, 2)))
        first += images * units
    return np.concatenate(sums, axis=1)


class LinearLearner:
    """One cohort's features behind a linear head: its clipped gradient sums, as a `Learner` needs them.

    Args:
        head: the model.
        features: (n, d) frozen features of the cohort's images, as normalised.
        labels: (n,) class codes; for findings (n, classes) of 1, 0, and -1 for unknown, which adds nothing.
        patients: (n,) patient codes 0 .. P-1, each in use.
        unit: whom one contribution belongs to. ``"site"`` adds the mean gradients of all patients and clips the whole.
        class_weights: public, or privately released, weights of the loss, (classes,); None for all 1.

    Raises:
        InvalidValue: columns of different length, codes out of range, features that are not finite or
            beyond 1e6.
    """

    def __init__(
        self,
        head: LinearHead,
        features: npt.NDArray[Any],
        labels: npt.NDArray[Any],
        patients: npt.NDArray[Any],
        *,
        unit: Unit = "patient",
        class_weights: npt.ArrayLike | None = None,
    ) -> None:
        checked = checked_features(features, head.features)
        groups = np.arange(len(checked)) if unit == "image" else checked_patients(patients, len(checked))
        shape = (head.classes,)
        weights = np.ones(shape) if class_weights is None else checked_weights(class_weights, shape)
        self._head, self._unit, self._groups = head, unit, int(groups.max()) + 1
        self._features = checked
        self._targets, self._weights = _loss(head, labels, weights, len(checked))
        self._sizes, self._order = np.bincount(groups), np.argsort(groups, kind="stable")
        self._everyone = tuple(self._parts(np.arange(self._groups)))

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return self._head.dimension

    @property
    def units(self) -> int:
        """Number of protected units."""
        return 1 if self._unit == "site" else self._groups

    def contribution(
        self,
        parameters: npt.ArrayLike,
        *,
        clip_norm: float,
        units: Indices | None = None,
        offsets: Vector | float = 0.0,
    ) -> Vector:
        """Sum the units' clipped gradients; see `Learner.contribution`. The sum is exact; see the module's text.

        ``offsets`` (logits,) are added to the logits in the loss; public.
        """
        if not CLIP_NORMS[0] <= clip_norm <= CLIP_NORMS[1]:
            raise InvalidValue(
                f"clip_norm is {clip_norm}", "it must be positive, from 1e-100 to 1e100", "1.0 is usual"
            )
        weights, chosen = self._head.weights(parameters), self._chosen(units)
        if self._unit == "site":
            return self._of_site(weights, offsets, clip_norm, drawn=chosen is None or chosen.size > 0)
        total = np.zeros(self.dimension)
        for part in self._everyone if chosen is None else self._parts(chosen):
            total += _clipped(part.gradients(self._head, weights, offsets), clip_norm).sum(axis=1)
        return total * grid(clip_norm)

    def _of_site(self, weights: Vector, offsets: Vector | float, clip_norm: float, *, drawn: bool) -> Vector:
        """The sum of all patients' gradients as one unit's: nobody else is in it, so its order does not matter."""
        total = np.zeros((self.dimension, 1))
        for part in self._everyone if drawn else ():
            total += part.gradients(self._head, weights, offsets).sum(axis=1, keepdims=True)
        return _clipped(total, clip_norm)[:, 0] * grid(clip_norm)

    def _chosen(self, units: Indices | None) -> Indices | None:
        """The units that take part, checked; None for all of them."""
        if units is None:
            return None
        chosen = np.asarray(units, dtype=np.int64)
        if len(np.unique(chosen)) != chosen.size or ((chosen < 0) | (chosen >= self.units)).any():
            raise InvalidValue(
                "the indices of the sampled units repeat or are out of range",
                f"each of {self.units} units takes part at most once",
                "sample again",
            )
        return chosen

    def _parts(self, units: Indices) -> Iterator[_Part]:
        """These units in parts that are no larger than one unit, or `NUMBERS`; a unit's images keep their order."""
        starts = np.cumsum(self._sizes) - self._sizes
        units = units[np.argsort(self._sizes[units], kind="stable")]
        most = max(1, NUMBERS // self.dimension)
        while len(units):
            count = max(1, int(np.searchsorted(np.cumsum(self._sizes[units]), most, side="right")))
            part, units = units[:count], units[count:]
            found, counts = np.unique(self._sizes[part], return_counts=True)
            buckets = tuple((int(size), int(number)) for size, number in zip(found, counts, strict=True))
            rows, first = [], 0
            for size, number in buckets:
                members = part[first : first + number]
                rows.append((starts[members] + np.arange(size)[:, None]).ravel())
                first += number
            yield self._part(self._order[np.concatenate(rows)], buckets)

    def _part(self, rows: Indices, buckets: tuple[tuple[int, int], ...]) -> _Part:
        sizes = np.concatenate([np.full(m * u, m) for m, u in buckets])
        return _Part(
            self._features[rows].T.astype(np.float64, order="C"),
            self._targets[:, rows].astype(np.float64),
            self._weights[:, rows] / sizes,
            buckets,
        )


def _loss(
    head: LinearHead, labels: npt.NDArray[Any], weights: Vector, length: int
) -> tuple[npt.NDArray[Any], Vector]:
    """Targets (logits, n), and the weights of images in the loss, (1, n) or for findings (logits, n)."""
    if not head.findings:
        codes = checked_codes("label", labels, length, head.classes)
        if head.grades:
            return np.stack(neighbours(codes, cut_points(head.classes))), weights[codes][None, :]
        return np.eye(head.classes, dtype=bool)[-head.logits :, codes], weights[codes][None, :]
    checked_findings(labels, length, head.classes)
    return labels.T == 1, np.where(labels.T >= 0, weights[:, None], 0.0)


def _clipped(gradients: Vector, clip_norm: float) -> Vector:
    """Gradients (d, units) of norm ``clip_norm`` at most, each by its own norm, in whole steps of the grid."""
    bound, step = clip_norm * SHORTER, grid(clip_norm)
    norms = np.sqrt(first_sums(gradients * gradients))
    gradients *= bound / np.maximum(norms, bound) / step
    return np.trunc(gradients, out=gradients)
