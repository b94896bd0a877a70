"""Faults of earlier versions, planted into the product again one at a time: the short search has to find each.

Each stands for a kind: something that is decided or bounded for one patient, computed from others. A table of them,
with the time that it takes to find each and the moves found:

    python -m tests.neighbours.planted
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import torch
from tests.neighbours.kinds import KINDS
from tests.neighbours.search import Found, search

from fedveil.data import Dataset, Options
from fedveil.data import image_store as data_stack
from fedveil.data.annotations.records import assemble
from fedveil.data.formats.image_files import FileImages
from fedveil.data.load import read_records
from fedveil.deploy.offer import Offer
from fedveil.deploy.site import runtime as hosting
from fedveil.federation import noise
from fedveil.federation.contributions import Contributions
from fedveil.learning.gradients.rules import fallback, standardised
from fedveil.learning.gradients.trial.calls import Leaf
from fedveil.learning.models import linear_head
from fedveil.learning.models import logistic as linear
from fedveil.learning.models import network as network_learner
from fedveil.learning.models.findings import FindingsLearner
from fedveil.learning.models.logistic import LinearHead, LinearLearner
from fedveil.learning.models.losses.findings import loss_weights
from fedveil.study.features import isolation

__all__ = ["PLANTED", "Fault", "look_for"]

Plant = Callable[[contextlib.ExitStack], None]


@dataclass(frozen=True)
class Fault:
    """A fault, how it is planted, and where the short search looks for it.

    Attributes:
        words: what is wrong.
        plant: patches the product for as long as the stack is open.
        kinds: names of kinds of models that it shows in.
        trials: cohorts of each that are searched at most.
        only: names of the releases that it shows in; all where none are named.
    """

    words: str
    plant: Plant
    kinds: tuple[str, ...]
    trials: int = 6
    only: tuple[str, ...] = ()

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """Within it the product has the fault."""
        with contextlib.ExitStack() as stack:
            self.plant(stack)
            yield


def look_for(fault: Fault, seed: int, *, stop: bool, trials: int = 0) -> Found | None:
    """Plant a fault and search; what shows it, or None.

    Args:
        fault: to be planted.
        seed: of the search.
        stop: at the first sign of it; otherwise the worst of all cohorts.
        trials: so many cohorts of each kind; 0 for those of the fault.
    """
    shown: list[Found] = []
    with fault.planted():
        for trial in range(trials or fault.trials):
            for name in fault.kinds:
                found = search(KINDS[name], seed, trial, stop=stop, only=fault.only)
                shown += [one for one in found if not one.sound]
                if shown and stop:
                    return shown[0]
    return max(shown, key=lambda one: (one.most, one.others), default=None)


def _patch(stack: contextlib.ExitStack, owner: ModuleType | type, name: str, value: object) -> None:
    stack.enter_context(mock.patch.object(owner, name, value))


def largest_patient_of_the_cohort(stack: contextlib.ExitStack) -> None:
    """What rounding may take from a patient's norm in a linear head is allowed for by the cohort's largest patient.

    A site took any centre and any weights of classes then.
    """
    eps, seen = np.finfo(np.float64).eps, {}
    contribution, gradients = LinearLearner.contribution, linear._Part.gradients

    def of_cohort(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen["most"] = self._sizes.max()
        return contribution(self, *args, **kwargs)

    def with_masses(self: Any, head: LinearHead, weights: Any, offsets: Any) -> Any:
        """Beside the gradients, sum_i |r_i| |x_i| of each unit."""
        logits = linear.logits_by_image(weights, self.features) + np.reshape(offsets, (-1, 1))
        residuals = head.residuals(logits, self.targets)
        of_image = np.linalg.norm(residuals * self.weights, axis=0) * np.linalg.norm(self.features, axis=0)
        masses, first = [], 0
        for size, units in self.buckets:
            masses.append(of_image[first : first + size * units].reshape(size, units).sum(axis=0))
            first += size * units
        seen["masses"] = np.concatenate(masses)
        return gradients(self, head, weights, offsets)

    def clipped(found: Any, clip_norm: float) -> Any:
        slack = 4 * eps * (len(found) + seen["most"])
        norms = np.sqrt(np.square(found).sum(axis=0) + slack * seen["masses"] ** 2)
        return np.trunc(found * (clip_norm / np.maximum(norms, clip_norm)) / linear.grid(clip_norm))

    _patch(stack, LinearLearner, "contribution", of_cohort)
    _patch(stack, linear._Part, "gradients", with_masses)
    _patch(stack, linear, "_clipped", clipped)
    _patch(stack, Contributions, "check", lambda self, release, parameters: None)


def largest_patient_of_the_batch(stack: contextlib.ExitStack) -> None:
    """The same in the weight-standardised convolutions of a network, by the largest patient of the batch."""
    chain = standardised._Standardised
    start = chain.__init__

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        tapes = [one for one in (*args, *kwargs.values()) if hasattr(one, "batch")]
        self.largest = int(tapes[0].batch.counts[-1])

    def additions(self: Any, images_each: int) -> int:
        return 2 * (self._fan_in + self._channels + 2 * self.largest * self._positions)

    _patch(stack, chain, "__init__", begun)
    _patch(stack, chain, "additions", additions)


def a_file_decides_the_channels(stack: contextlib.ExitStack) -> None:
    """One file in colour makes all images of a set colour."""
    start = FileImages.__init__

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        start(self, *args, **kwargs)
        self._channels = int(self.facts.channels.max(initial=1))

    _patch(stack, FileImages, "__init__", begun)


def a_file_decides_on_the_set(stack: contextlib.ExitStack) -> None:
    """One file that cannot be used makes all others of an approved study count as nothing."""

    def strict(source: str, options: Options, *, base: Path, **_: object) -> Dataset:
        return assemble(read_records(source, options, base), options, source)

    _patch(stack, hosting, "load_usable", strict)


def a_file_decides_the_status(stack: contextlib.ExitStack) -> None:
    """One file that cannot be used keeps the hospital out of an approved study, which its status tells."""
    a_file_decides_on_the_set(stack)

    def learner(self: hosting.Cohorts, offer: Offer) -> Any:
        task = self.task(offer)
        return task.learner(self.own(task.dataset, task.dataset.train)), None

    _patch(stack, hosting.Cohorts, "_learner", learner)


def a_private_count_refuses(stack: contextlib.ExitStack) -> None:
    """A masked sum over more units than it has room for is refused, by their number."""
    _patch(stack, noise, "bounded", lambda vector, bound: vector)


def one_file_takes_the_sum_along(stack: contextlib.ExitStack) -> None:
    """A sum is given up where one image cannot be read."""
    _patch(stack, data_stack.OddImages, "read", lambda self, indices: self._base.read(indices))
    _patch(stack, isolation.Readable, "read", lambda self, indices: self.source.read(indices))


def logits_of_all_rows_at_once(stack: contextlib.ExitStack) -> None:
    """A matrix product, which rounds a row by how many there are."""

    def logits_of(self: LinearHead, parameters: Any, features: Any) -> Any:
        return features.astype(np.float64) @ self.weights(parameters).T

    _patch(stack, LinearHead, "logits_of", logits_of)


def gradients_of_all_rows_at_once(stack: contextlib.ExitStack) -> None:
    """The same product where a linear head's gradients are taken."""
    _patch(stack, linear, "logits_by_image", lambda weights, columns: weights @ columns)


def findings_weighed_by_the_cohort(stack: contextlib.ExitStack) -> None:
    """A finding is weighed by how many have it here, not by what was released."""

    def class_weights(self: FindingsLearner, numbers: Any) -> Any:
        return loss_weights(np.clip((self._labels == 1).mean(axis=0), 0.01, 0.99))

    _patch(stack, FindingsLearner, "_class_weights", class_weights)


def a_pilot_with_bins_by_the_cohort(stack: contextlib.ExitStack) -> None:
    """Scores of a pilot are measured in the standard deviation of the cohort's scores."""
    counts = linear_head.pilot_counts

    def standardised(scores: Any, *rest: Any) -> Any:
        return counts(scores / max(float(np.std(scores)), 1e-12), *rest)

    _patch(stack, linear_head, "pilot_counts", standardised)


def batches_of_who_is_left(stack: contextlib.ExitStack) -> None:
    """A network sees a batch of as many images as there are, be it one."""

    def as_they_are(images: Any, labels: Any, members: Any) -> Any:
        return images, labels, members, torch.ones(len(images))

    _patch(stack, network_learner, "filled_up", as_they_are)


def scores_of_who_is_left(stack: contextlib.ExitStack) -> None:
    """The same where a network judges images."""

    def filled(module: Any, images: Any) -> Any:
        return module(torch.from_numpy(np.ascontiguousarray(images)))

    _patch(stack, network_learner, "filled", filled)


def any_tensor_of_the_batchs_length(stack: contextlib.ExitStack) -> None:
    """The slow fallback takes whatever has as many rows as the batch for images."""

    seen: dict[str, int] = {}

    def of_unit(leaf: Leaf, value: Any, first: int, count: int) -> Any:
        if leaf.axis is not None:  # the images come before the table
            seen["images"] = value.shape[leaf.axis] // leaf.rows
        is_batch = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == seen["images"]
        return value[first : first + count] if is_batch else value

    _patch(stack, fallback, "_of_unit", of_unit)


PLANTED = {
    fault.plant.__name__: fault
    for fault in (
        Fault(
            "rounding allowed for by the largest patient of the cohort, in a linear head",
            largest_patient_of_the_cohort,
            ("pixels", "pixels, 3 classes", "pixels, sampled"),
            trials=9,
        ),
        Fault(
            "rounding allowed for by the largest patient of the batch, in a network",
            largest_patient_of_the_batch,
            ("cnn",),
        ),
        Fault(
            "the channels of all images decided by one file in colour",
            a_file_decides_the_channels,
            ("pixels, files",),
            trials=20,
        ),
        Fault(
            "all of a hospital's images left out because of one file",
            a_file_decides_on_the_set,
            ("pixels, files",),
        ),
        Fault("a status that tells whether one file can be used", a_file_decides_the_status, ("answers",)),
        Fault(
            "a masked sum refused where there are more units than it has room for",
            a_private_count_refuses,
            ("more than there is room for",),
        ),
        Fault(
            "a sum given up because of one file",
            one_file_takes_the_sum_along,
            ("cnn, files",),
            trials=20,
        ),
        Fault(
            "decisions on sums that round by how many rows there are",
            logits_of_all_rows_at_once,
            ("pixels", "pixels, sampled", "averaging"),
            trials=12,
        ),
        Fault(
            "gradients of a linear head from logits that round by how many rows there are",
            gradients_of_all_rows_at_once,
            ("pixels", "pixels, 3 classes"),
        ),
        Fault(
            "findings weighed by how many have them here",
            findings_weighed_by_the_cohort,
            ("findings",),
            only=("training",),
        ),
        Fault("a pilot's bins by the spread of the cohort", a_pilot_with_bins_by_the_cohort, ("pilot",)),
        Fault(
            "gradients of batches as small as who is left",
            batches_of_who_is_left,
            ("tuned, one image each",),
            only=("training",),
        ),
        Fault(
            "the slow fallback cuts any tensor with as many rows as the batch",
            any_tensor_of_the_batchs_length,
            ("positions",),
            trials=2,
        ),
        Fault(
            "scores of batches as small as who is left",
            scores_of_who_is_left,
            ("cnn", "tuned"),
            only=("calibration", "evaluation"),
        ),
    )
}


def main() -> None:
    """Print the table; seconds are of one core, moves the largest in the cohorts up to the one that shows the fault."""
    torch.set_num_threads(1)
    sys.stdout.write(
        "| fault planted | found by the short search in | move found, in bounds |\n|---|---|---|\n"
    )
    for fault in PLANTED.values():
        start = time.process_time()
        first = look_for(fault, 1, stop=True)
        seconds = time.process_time() - start
        worst = look_for(fault, 1, stop=False, trials=first.trial + 1) if first else None
        shown = (
            f"{worst.most:.3g}, of others {worst.others:.2g} ({worst.kind}; {worst.release})"
            if worst
            else "none"
        )
        sys.stdout.write(f"| {fault.words} | {seconds:.1f} s | {shown} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
