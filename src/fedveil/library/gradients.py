"""Private training in a loop of one's own: sampling, clipping, noise and charge come from one object each step.

DP-SGD (Abadi et al., arXiv 1607.00133) with patients for examples: each step charges the ledger, draws every patient
by itself with the mechanism's sampling rate, sums their clipped gradients, and adds the mechanism's noise. What is
sampled is what is accounted, since both follow from the same mechanism.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import default_collate

from fedveil.errors import InvalidValue
from fedveil.learning.gradients import PrivateGradients, dimension, poisson_sample, trainable_parameters
from fedveil.learning.models.network import BATCH, ROUNDING, TRIED
from fedveil.learning.padded_batches import filled_up
from fedveil.learning.unit_batches import first_of_runs, rows_by_units
from fedveil.privacy import Ledger, Mechanism, check_delta, release, secure_generator

__all__ = ["PrivateStep", "private_steps"]

Indices: TypeAlias = npt.NDArray[np.int64]
Batch: TypeAlias = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class PrivateStep:
    """One step whose noisy gradient lies in the parameters' ``grad``, for any optimiser to use.

    Nothing else of the batch is told: its size, its loss and the norms in it are not covered by the mechanism.

    Attributes:
        number: 1 for the first.
        of: how many steps there will be.
    """

    number: int
    of: int


def private_steps(
    sums: PrivateGradients,
    data: Any,
    mechanism: Mechanism,
    ledger: Ledger,
    *,
    units: int,
    patients: Any = None,
    study: str = "training",
) -> Iterator[PrivateStep]:
    """Run the steps of a mechanism: each sets the gradients of the model's parameters, and the caller steps.

    Let q be the sampling rate and z the noise multiplier. A step sets the gradient to

        (sum over the sampled units of their clipped gradients + N(0, (z clip_norm)^2 I)) / (q units),

    with the standard deviation enlarged by what single precision may lose. Each is charged, durably, before an image
    is read; a step that was charged and then interrupted stays charged.

    Args:
        sums: the model, the loss and the clip norm.
        data: (images, labels) as tensors or arrays, or a map-style torch data set of (image, label).
        mechanism: sampling rate, noise, number of steps and unit, as `fedveil.calibrate` returns it.
        ledger: what the steps are charged to. All of them must fit into its budget before the first one begins.
        units: a public number of about how many patients, or images, there are: never counted for this call.
        patients: (n,) whom each image shows; needed where the mechanism protects patients.
        study: what the ledger calls this training.

    Raises:
        InvalidValue: mechanism, model and data do not fit together; nothing was charged.
        BudgetExceeded: the ledger does not cover all steps; nothing was charged.

    Example::

        mechanism = fv.calibrate(guarantee, steps=100, sampling_rate=0.1)
        sums = fv.PrivateGradients(model, loss, clip_norm=1.0)
        for _ in fv.private_steps(sums, (images, labels), mechanism, ledger, units=1000, patients=ids):
            optimizer.step()
    """
    rows = _Rows.of(data)
    owners = _owners(mechanism, patients, len(rows))
    _check(sums, mechanism, rows, units, ledger)
    ledger.admit(mechanism)
    return _steps(sums, rows, owners, mechanism, ledger, units, study)


def _steps(
    sums: PrivateGradients,
    rows: "_Rows",
    owners: Indices,
    mechanism: Mechanism,
    ledger: Ledger,
    units: int,
    study: str,
) -> Iterator[PrivateStep]:
    generator = secure_generator()
    cohort = _Cohort(sums, rows, owners)
    for number in range(1, mechanism.steps + 1):
        ledger.reserve(mechanism.with_steps(1), study=study, trust="site", round=number)
        total = cohort.sum(poisson_sample(cohort.units, mechanism.sampling_rate, generator))
        noisy = release(total, mechanism.noise_std * (1 + ROUNDING), generator)
        _set_gradients(sums.model, noisy / (mechanism.sampling_rate * units))
        yield PrivateStep(number, mechanism.steps)


class _Cohort:
    """Exact sums over units, which do not leave this module; batched so that rounding does not grow with the cohort.

    See `fedveil.learning.unit_batches`. Where runs begin is found out when a unit is first drawn, so that no image is
    read before a step is charged.
    """

    def __init__(self, sums: PrivateGradients, rows: "_Rows", owners: Indices) -> None:
        self._sums, self._rows, self._owners = sums, rows, owners
        self.units = int(owners.max(initial=-1)) + 1
        self._limit = min(sums.micro_batch or BATCH, BATCH)
        self._known = np.zeros(self.units, dtype=np.bool_)
        self._first = np.zeros(self.units, dtype=np.bool_)

    def sum(self, units: Indices) -> npt.NDArray[np.float64]:
        """The sum of these units' clipped gradients."""
        self._find_first(units[~self._known[units]])
        total = np.zeros(dimension(self._sums.model))
        for rows in rows_by_units(self._owners, self._first, self._limit, units):
            images, labels = self._rows.read(rows)
            members = torch.from_numpy(self._owners[rows])
            total += self._sums.sum(*filled_up(images, labels, members)).vector.double().cpu().numpy()
        return total

    def _find_first(self, units: Indices) -> None:
        """Find out which units begin a run, of those that are drawn for the first time."""
        if not len(units):
            return
        rows = np.flatnonzero(np.isin(self._owners, units))
        groups = np.searchsorted(units, self._owners[rows])
        nothing = np.empty((len(rows), 0), dtype=np.int64)  # labels are read with the images
        self._first[units] = first_of_runs(
            lambda some: self._rows.contents(rows[some]), nothing, groups, self._limit
        )
        self._known[units] = True


def _set_gradients(model: torch.nn.Module, vector: npt.NDArray[np.float64]) -> None:
    start = 0
    for parameter in trainable_parameters(model).values():
        stop = start + parameter.numel()
        part = torch.from_numpy(vector[start:stop]).reshape(parameter.shape)
        parameter.grad = part.to(device=parameter.device, dtype=parameter.dtype)
        start = stop


@dataclass(frozen=True, slots=True)
class _Rows:
    """Images and labels by row."""

    count: int
    read: Callable[[Indices], Batch]

    def __len__(self) -> int:
        return self.count

    def contents(self, rows: Indices) -> npt.NDArray[np.uint8]:
        """Bytes (k, b) of images and labels."""
        parts = [one.detach().cpu().reshape(len(rows), -1).contiguous() for one in self.read(rows)]
        return np.concatenate([part.view(torch.uint8).numpy() for part in parts], axis=1)

    @classmethod
    def of(cls, data: Any) -> "_Rows":
        if isinstance(data, Sequence) and len(data) == 2 and all(hasattr(one, "shape") for one in data):
            images, labels = (torch.as_tensor(one) for one in data)
            if len(images) != len(labels):
                raise InvalidValue(
                    f"there are {len(images)} images and {len(labels)} labels",
                    "every image has one label",
                    "give columns of one length",
                )
            return cls(len(images), lambda rows: (images[rows], labels[rows]))
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise InvalidValue(
                f"data is a {type(data).__name__}",
                "it must be a pair of tensors, or a torch data set with a length",
                "give (images, labels)",
            )

        def read(rows: Indices) -> Batch:
            images, labels = default_collate([tuple(data[int(row)]) for row in rows])
            return images, labels

        return cls(len(data), read)


def _owners(mechanism: Mechanism, patients: Any, count: int) -> Indices:
    """The unit of each image, 0, 1, ..."""
    if mechanism.unit == "site":
        raise InvalidValue(
            "the mechanism protects a whole site",
            "a step here sums over patients or images",
            'calibrate for the unit "patient"',
        )
    if mechanism.unit == "image":
        return np.arange(count)
    if patients is None:
        raise InvalidValue(
            "patients were not given, and the mechanism protects patients",
            "images of one patient are clipped together",
            'give patients, or calibrate for the unit "image"',
        )
    values = np.asarray(patients)
    if values.shape != (count,):
        raise InvalidValue(
            f"patients have the shape {values.shape}",
            f"there are {count} images",
            "give one patient for each image",
        )
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _check(sums: PrivateGradients, mechanism: Mechanism, rows: _Rows, units: int, ledger: Ledger) -> None:
    if sums.clip_norm != mechanism.clip_norm:
        raise InvalidValue(
            f"gradients are clipped to {sums.clip_norm:g}, and the mechanism's clip norm is {mechanism.clip_norm:g}",
            "noise is in proportion to the clip norm",
            "calibrate with the clip norm of the gradients",
        )
    if isinstance(units, bool) or not isinstance(units, int) or units < 1:
        raise InvalidValue(f"units is {units!r}", "it must be a whole number, at least 1", "state it roughly")
    check_delta(ledger.budget.delta, units)
    if not len(rows):
        raise InvalidValue("there are no images", "there must be some to train on", "check the data")
    images, labels = rows.read(np.zeros(1, dtype=np.int64))
    most = sums.micro_batch or BATCH
    # Their shape and type; all content is made up.
    sums.check(images[:0], labels[:0], tuple(sorted({min(one, most) for one in TRIED})))
