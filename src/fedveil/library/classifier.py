"""A private linear classifier that follows scikit-learn's conventions."""

import os
import secrets
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fedveil.data import TRAIN, Dataset, Embeddings
from fedveil.errors import InvalidValue
from fedveil.privacy import Budget, Guarantee, Ledger, check_delta
from fedveil.study import Prepared, RunDirectory, Study
from fedveil.study.pipeline import make_task
from fedveil.study.progress import Silent
from fedveil.study.simulation import Simulated, train_here

__all__ = ["PrivateLinearClassifier"]

SITE = "site"
LEAST = 1e-300
Vector = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]


class PrivateLinearClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A linear classifier of feature vectors whose fit is differentially private.

    Every row is scaled to length 1 by its own length, which bounds what one unit can contribute; features that are
    embeddings of a public encoder suit it. Class sizes and means are released with noise first, then clipped gradients,
    with all units in each round. The noise comes from the operating system: there is no ``random_state``, and two
    fits differ. **Every fit is a release of its own.** A cross-validation or a grid search fits many times, and costs
    as much; a ``ledger`` adds it up and refuses what its budget does not cover.

    Args:
        epsilon: of one fit.
        delta: of one fit; at most one over the number of units.
        classes: the classes, which are public. By default those that occur in ``y``: that a class occurs at all is
            then taken to be public knowledge.
        rounds: noisy gradient steps.
        clip_norm: L2 bound of one unit's gradient.
        ledger: path of a ledger that every fit is charged to; it must exist, see `fedveil.Ledger`. By default a fit is
            charged to a ledger of its own, which is not kept.

    Attributes:
        classes_: the classes in order.
        n_features_in_: length of a row.
        guarantee_: what the fit guarantees, and to whom: to any one group with all of its rows where ``groups`` were
            given to `fit` (unit "patient"), otherwise to any one row (unit "image").

    >>> X = np.repeat(np.eye(2), 200, axis=0)
    >>> y = np.repeat(["ill", "well"], 200)
    >>> classifier = PrivateLinearClassifier(epsilon=2.0).fit(X, y)
    >>> classifier.classes_.tolist(), classifier.guarantee_.epsilon <= 2.0
    (['ill', 'well'], True)
    """

    def __init__(
        self,
        epsilon: float = 1.0,
        *,
        delta: float = 1e-5,
        classes: Sequence[Any] | None = None,
        rounds: int = 30,
        clip_norm: float = 0.2,
        ledger: str | os.PathLike[str] | None = None,
    ) -> None:
        self.epsilon = epsilon
        self.delta = delta
        self.classes = classes
        self.rounds = rounds
        self.clip_norm = clip_norm
        self.ledger = ledger

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit to rows X (n, d) with classes y (n,), and return the estimator.

        Args:
            X: feature vectors.
            y: classes.
            groups: (n,) whom each row belongs to; the guarantee is for all rows of one group together.

        Raises:
            ValueError: the columns do not fit together, or delta is too large.
            BudgetExceeded: the ledger does not cover the fit; nothing was released.
        """
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, codes = _coded(y, self.classes)
        owners = np.arange(len(X)) if groups is None else _owners(groups, len(X))
        check_delta(self.delta, int(owners.max()) + 1)
        dataset = _dataset(_unit_rows(X), codes, owners, len(self.classes_))
        study = self._study(dataset, "image" if groups is None else "patient")
        prepared = Prepared(study=study, dataset=dataset, sites={SITE: dataset.train}, simulated=True)
        task = make_task(study, dataset, Silent())
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fedveil-fit-")))
            ledger = stack.enter_context(self._ledger(folder, study))
            _, trained = train_here(
                prepared,
                task,
                RunDirectory.create(folder / "run", study),
                Simulated({SITE: ledger}),
                evaluate=lambda _parameters, _priors: None,
                progress=Silent(),
            )
            state = ledger.state
            spent = state.spent(state.charges[-1].study, delta=self.delta)
        self.model_ = task.trained(trained.parameters, trained.statistics)
        self.guarantee_ = Guarantee(spent, self.delta, study.privacy.unit, "site")
        return self

    def _study(self, dataset: Dataset, unit: str) -> Study:
        """One fit as a study; its name tells it from every other fit in a ledger."""
        vectors = dataset.images
        dimension = vectors.dimension if isinstance(vectors, Embeddings) else None
        return Study(
            name=f"fit {secrets.token_hex(8)}",
            features="precomputed",
            dimension=dimension,
            epsilon=self.epsilon,
            delta=self.delta,
            unit=unit,
            trust="site",
            rounds=self.rounds,
            clip_norm=self.clip_norm,
        )

    def _ledger(self, folder: Path, study: Study) -> Ledger:
        if self.ledger is not None:
            return Ledger(Path(self.ledger))
        privacy = study.privacy
        return Ledger(folder / "ledger.jsonl", Budget(privacy.largest_epsilon, privacy.delta, privacy.unit))

    def predict_proba(self, X: Any) -> Vector:
        """Class probabilities (n, classes) of rows X (n, d), in the order of ``classes_``."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        return self.model_.probabilities(_unit_rows(X))

    def decision_function(self, X: Any) -> Vector:
        """Log odds of the second class (n,), or of more than two classes log probabilities (n, classes)."""
        logarithms = np.log(np.maximum(self.predict_proba(X), LEAST))
        result: Vector = logarithms[:, 1] - logarithms[:, 0] if len(self.classes_) == 2 else logarithms
        return result

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The most probable class of each row."""
        scores = self.decision_function(X)
        codes = (scores > 0).astype(np.int64) if scores.ndim == 1 else scores.argmax(axis=1)
        result: npt.NDArray[Any] = self.classes_[codes]
        return result

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.non_deterministic = True
        tags.classifier_tags.poor_score = True  # on the few rows that scikit-learn's checks have
        return tags


def _coded(y: npt.NDArray[Any], classes: Sequence[Any] | None) -> tuple[npt.NDArray[Any], Codes]:
    """The classes in order, and each row's code."""
    known = np.unique(y if classes is None else np.asarray(classes))
    if len(known) < 2:
        raise InvalidValue(
            f"there is {len(known)} class",
            "a classifier needs at least two classes",
            "add rows of another class, or give classes=[...]",
        )
    strange = np.setdiff1d(y, known)
    if len(strange):
        raise InvalidValue(
            f"y holds {', '.join(map(str, strange[:5]))}",
            f"the classes are {', '.join(map(str, known))}",
            "correct y, or name every class in classes",
        )
    return known, np.searchsorted(known, y).astype(np.int64)


def _owners(groups: Any, rows: int) -> Codes:
    values = np.asarray(groups)
    if values.shape != (rows,):
        raise InvalidValue(
            f"groups have the shape {values.shape}", f"there are {rows} rows", "give one group for each row"
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _unit_rows(X: Vector) -> npt.NDArray[np.float32]:
    """Each row divided by its own length, and nobody else's; a row of zeros stays one."""
    scaled = X / np.maximum(np.abs(X).max(axis=1, keepdims=True), LEAST)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    result: npt.NDArray[np.float32] = (scaled / np.maximum(lengths, LEAST)).astype(np.float32)
    return result


def _dataset(vectors: npt.NDArray[np.float32], codes: Codes, owners: Codes, classes: int) -> Dataset:
    """All rows to train on; names are numbers, since nothing of this data set is written down."""
    return Dataset(
        name="rows",
        images=Embeddings(vectors),
        labels=codes,
        patients=owners,
        patient_names=tuple(map(str, range(int(owners.max()) + 1))),
        image_names=tuple(map(str, range(len(codes)))),
        classes=tuple(map(str, range(classes))),
        split=np.full(len(codes), TRAIN, dtype=np.int8),
    )
