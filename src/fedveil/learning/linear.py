"""A linear classifier on frozen features, and its clipped per-patient gradient sums in closed form.

Frozen public features with a private linear head: Tramer & Boneh, "Differentially private learning needs
better features" (2011.11660); De et al. (2204.13650); Mehta et al. (2211.13403).

With features x_i (a constant 1 appended for the bias) and residuals r_i = p(x_i) - y_i, the logistic loss
has the gradient r_i x_i^T, and a patient p whose images weigh w_i has g_p = sum_i w_i r_i x_i^T. Its norm
needs no matrix of its own (Goodfellow, 1510.01799, with several images a unit):

    ||g_p||^2 = sum_{i,j in p} <w_i r_i, w_j r_j> <x_i, x_j>

The products <x_i, x_j> within patients never change, so they are computed once, and one round is two
products with the feature matrix.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import sparse, special

from fedveil.errors import InvalidValue
from fedveil.learning.learner import Indices, Vector

Clipping: TypeAlias = Literal["flat", "automatic"]
Reduction: TypeAlias = Literal["mean", "sum"]
Unit: TypeAlias = Literal["patient", "image", "site"]

LARGEST_FEATURE = 1e6
"""Larger values, like NaN, mean broken features; the bound keeps every product far from overflow."""
LARGEST_PARAMETER = 1e12
LARGEST_WEIGHT = 1e6
AUTOMATIC_STABILITY = 0.01
"""The constant gamma of automatic clipping (Bu et al., 2206.07136, section 3.4)."""


@dataclass(frozen=True, slots=True)
class LinearHead:
    """Multinomial logistic regression on ``features`` numbers, as one flat parameter vector.

    Two classes share one logit, that of class 1: parameters are (w, b), ``features + 1`` numbers. More
    classes have one each: (w_0, b_0, w_1, b_1, ...), ``classes * (features + 1)`` numbers. Without
    ``intercept`` there are no b.
    """

    features: int
    classes: int
    intercept: bool = True

    def __post_init__(self) -> None:
        if self.features < 1 or self.classes < 2:
            raise InvalidValue(
                f"a linear head has {self.features} features and {self.classes} classes",
                "it needs at least one feature and two classes",
                "check the labels: training images of one class alone teach nothing",
            )

    @property
    def logits(self) -> int:
        """Number of logits: 1 for two classes, otherwise one a class."""
        return 1 if self.classes == 2 else self.classes

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return self.logits * self.inputs

    @property
    def inputs(self) -> int:
        """Numbers that each logit weighs: the features, and the constant 1 if there is an intercept."""
        return self.features + self.intercept

    def extend(self, features: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Features (n, features) with the constant, as float64 (n, inputs)."""
        constant = np.ones((len(features), self.inputs - self.features))
        extended: npt.NDArray[Any] = np.concatenate([features, constant], axis=1, dtype=np.float64)
        return extended

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

        Each image is summed by itself. In a matrix product how an image is rounded depends on how many others there
        are; where weights cancel, the sign of its logit is nothing but rounding, and one patient less would change
        what is decided for the others.
        """
        weights = self.weights(parameters)
        extended = self.extend(_checked_features(features, self.features))
        return np.stack([(extended * row).sum(axis=1) for row in weights], axis=1)

    def weights(self, parameters: npt.ArrayLike) -> Vector:
        """View parameters as a matrix (logits, inputs), bias last, after checking them.

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
                "a linear head cannot be evaluated there",
                "lower the learning rate",
            )
        return vector.reshape(self.logits, self.inputs)

    def probabilities_of(self, logits: Vector) -> Vector:
        """Map logits (n, logits) to class probabilities (n, classes)."""
        if self.logits == 1:
            return np.concatenate([special.expit(-logits), special.expit(logits)], axis=1)
        result: Vector = special.softmax(logits, axis=1)
        return result


class LinearLearner:
    """One cohort's features behind a linear head: its clipped gradient sums, as a `Learner` needs them.

    Args:
        head: the model.
        features: (n, d) frozen features of the cohort's images, as normalised.
        labels: (n,) class codes.
        patients: (n,) patient codes 0 .. P-1, each in use.
        unit: whom one contribution belongs to. ``"site"`` adds all patients and clips the whole.
        reduction: whether a patient's images are averaged or added before clipping. The bound is the
            same; the mean keeps patients with many images from being clipped harder.
        clipping: ``"flat"``: g min(1, C / ||g||). ``"automatic"``: g C / (||g|| + 0.01), no bound to tune
            (Bu et al., 2206.07136).
        class_weights: (classes,) public, or privately released, weights of the loss; None for all 1.

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
        reduction: Reduction = "mean",
        clipping: Clipping = "flat",
        class_weights: npt.ArrayLike | None = None,
    ) -> None:
        checked = _checked_features(features, head.features)
        self._head, self._unit, self._clipping = head, unit, clipping
        self._labels = _checked_codes("label", labels, len(checked), head.classes)
        self._groups = (
            np.arange(len(checked)) if unit == "image" else _checked_patients(patients, len(checked))
        )
        self._targets = np.eye(head.classes)[self._labels][:, -head.logits :]
        shares = 1 / np.bincount(self._groups)[self._groups] if reduction == "mean" else 1.0
        weights = (
            np.ones(head.classes) if class_weights is None else _checked_weights(class_weights, head.classes)
        )
        self._image_weights = weights[self._labels] * shares
        self._features = head.extend(checked)
        self._norms = _GroupNorms(self._features, self._groups)

    @property
    def dimension(self) -> int:
        """Number of parameters."""
        return self._head.dimension

    @property
    def units(self) -> int:
        """Number of protected units."""
        return 1 if self._unit == "site" else self._norms.groups

    def contribution(
        self, parameters: npt.ArrayLike, *, clip_norm: float, units: Indices | None = None
    ) -> Vector:
        """Sum the units' clipped gradients; see `Learner.contribution`."""
        if not (np.isfinite(clip_norm) and clip_norm > 0):
            raise InvalidValue(f"clip_norm is {clip_norm}", "it must be finite and positive", "1.0 is usual")
        weights = self._head.weights(parameters)
        rows = self._rows(units)
        features = self._features[rows]
        probabilities = self._head.probabilities_of(features @ weights.T)[:, -self._head.logits :]
        residuals = np.zeros_like(self._targets)
        residuals[rows] = self._image_weights[rows, None] * (probabilities - self._targets[rows])
        if self._unit != "site":
            norms = self._norms(residuals)
            residuals *= self._factors(norms, clip_norm)[self._groups, None]
        total: Vector = (residuals[rows].T @ features).ravel()
        if self._unit == "site":
            total *= self._factors(np.linalg.norm(total), clip_norm)
        return total

    def _rows(self, units: Indices | None) -> Any:
        """Images of the units that take part, as an index into the feature matrix."""
        if units is None:
            return slice(None)
        chosen = np.asarray(units, dtype=np.int64)
        if len(np.unique(chosen)) != chosen.size or ((chosen < 0) | (chosen >= self.units)).any():
            raise InvalidValue(
                "the indices of the sampled units repeat or are out of range",
                f"each of {self.units} units takes part at most once",
                "sample again",
            )
        mask = np.zeros(self.units, dtype=bool)
        mask[chosen] = True
        if self._unit == "site":
            return slice(None) if mask[0] else slice(0)
        return np.flatnonzero(mask[self._groups])

    def _factors(self, norms: npt.NDArray[np.float64] | np.floating[Any], clip_norm: float) -> Vector:
        """What to scale gradients of these norms by, so that none is longer than ``clip_norm``."""
        if self._clipping == "automatic":
            factors: Vector = clip_norm / (np.asarray(norms) + AUTOMATIC_STABILITY)
        else:
            factors = clip_norm / np.maximum(norms, clip_norm)
        return factors


class _GroupNorms:
    """Norms of sum_i r_i x_i^T over groups of images, for fixed features x and any residuals r.

    Holds the products <x_i, x_j> within groups as one sparse block-diagonal matrix K, so that all squared
    norms are the group sums of r * (K r). The block of a group with more images than features would be larger
    than its gradient: then that is formed instead, so memory stays within that of the features, or of blocks
    of 64.

    A norm that comes out too small by rounding would break the bound, so each is rounded up: by the error
    bound of the inner products, a few ulp times sum_i |r_i| ||x_i||.
    """

    def __init__(self, features: Vector, groups: npt.NDArray[np.int64]) -> None:
        self._features, self._of = features, groups
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups)
        self.groups = len(sizes)
        starts = np.concatenate([[0], np.cumsum(sizes)])
        limit = max(features.shape[1], 64)
        self._large = [order[starts[g] : starts[g + 1]] for g in np.flatnonzero(sizes > limit)]
        self._products = _blocks(features, order, starts[:-1], sizes, limit)
        self._lengths = np.linalg.norm(features, axis=1)
        self._slack = 4 * np.finfo(np.float64).eps * (features.shape[1] + sizes.max())

    def __call__(self, residuals: Vector) -> Vector:
        """Map residuals (n, k) to an upper bound on the norms (groups,), exact but for rounding."""
        squares = np.bincount(self._of, (residuals * (self._products @ residuals)).sum(1), self.groups)
        for rows in self._large:
            squares[self._of[rows[0]]] = np.square(residuals[rows].T @ self._features[rows]).sum()
        sizes = np.bincount(self._of, self._lengths * np.linalg.norm(residuals, axis=1), self.groups)
        result: Vector = np.sqrt(np.maximum(squares, 0) + self._slack * sizes**2)
        return result


def _blocks(
    features: Vector, order: Indices, starts: Indices, sizes: Indices, limit: int
) -> "sparse.csr_array":
    """Inner products between images of one group, for groups of at most ``limit`` images; (n, n), sparse."""
    rows, columns, values = [], [], []
    for size in np.unique(sizes[sizes <= limit]):
        for chosen in _pieces(np.flatnonzero(sizes == size), size * features.shape[1]):
            members = order[starts[chosen][:, None] + np.arange(size)]
            block = features[members]
            values.append((block @ block.transpose(0, 2, 1)).ravel())
            rows.append(np.repeat(members, size, axis=1).ravel())
            columns.append(np.tile(members, (1, size)).ravel())
    shape = (len(features), len(features))
    if not values:
        return sparse.csr_array(shape)
    return sparse.csr_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=shape
    )


def _pieces(groups: Indices, numbers: int, most: int = 1 << 21) -> Iterator[Indices]:
    """Split groups so that a piece holds about ``most`` numbers, to keep the copy of their features small."""
    step = max(1, most // int(numbers))
    return (groups[start : start + step] for start in range(0, len(groups), step))


def _checked_features(features: npt.NDArray[Any], dimension: int) -> npt.NDArray[Any]:
    if features.ndim != 2 or features.shape[1] != dimension or features.dtype.kind != "f":
        raise InvalidValue(
            f"features have shape {features.shape} and type {features.dtype}",
            f"this model takes floating-point numbers of shape (n, {dimension})",
            "use the extractor that the model was made for",
        )
    if not (np.abs(features) <= LARGEST_FEATURE).all():
        raise InvalidValue(
            "features hold values that are not finite, or larger than 1e6",
            "one image's features must be bounded",
            "check the images, and the normalisation of features",
        )
    return features


def _checked_codes(what: str, codes: npt.NDArray[Any], length: int, count: int) -> npt.NDArray[np.int64]:
    result = np.asarray(codes)
    if result.shape != (length,) or result.dtype.kind not in "iu" or length == 0:
        raise InvalidValue(
            f"{what} codes have shape {result.shape} and type {result.dtype}",
            f"there must be one whole number for each of {length} images, at least one",
            "pass one column of codes",
        )
    if result.min() < 0 or result.max() >= count:
        raise InvalidValue(
            f"{what} codes reach from {result.min()} to {result.max()}",
            f"they must lie in 0 .. {count - 1}",
            "number them from 0 without gaps",
        )
    return result.astype(np.int64)


def _checked_patients(patients: npt.NDArray[Any], length: int) -> npt.NDArray[np.int64]:
    codes = _checked_codes("patient", patients, length, max(length, 1))
    if not np.bincount(codes).all():
        raise InvalidValue(
            "some patient codes have no image", "codes run from 0 without gaps", "renumber them"
        )
    return codes


def _checked_weights(weights: npt.ArrayLike, classes: int) -> Vector:
    result = np.asarray(weights, dtype=np.float64)
    if result.shape != (classes,) or not ((result >= 0) & (result <= LARGEST_WEIGHT)).all():
        raise InvalidValue(
            f"class_weights are {result}",
            f"there must be {classes} numbers in [0, {LARGEST_WEIGHT:g}]",
            "give one weight a class",
        )
    return result
