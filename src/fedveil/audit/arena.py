"""Where attacks take place: a study's hospitals with canary patients, and the real code between attacker and canary.

The neighbours of the guarantee are two cohorts that differ by one whole unit. An arena holds canary patients, each at a
hospital of its own choice; `Arena.world` includes some of them. The attacker knows everything but who was included: all
patients, all canaries, the parameters, and what the trust level lets it see. Sites that collude with it send no data
and no noise, which is what knowing their shares of the noise amounts to.

Every site of every world has a ledger of its own, in a temporary folder: nothing here is charged to a hospital.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, final

import numpy as np
import numpy.typing as npt

from fedveil.audit.statistics import Vector
from fedveil.data import Embeddings
from fedveil.errors import StudyError
from fedveil.federation import (
    Agreement,
    Coordinator,
    HospitalUnits,
    NoisySum,
    Release,
    Request,
    Rounds,
    Seen,
    Site,
)
from fedveil.federation.messages import Words32, Words64
from fedveil.learning import CentredHead, ClassHead, ImageSource, Learner
from fedveil.learning.encoders import PRECOMPUTED
from fedveil.study import Hospitals, Prepared, RunDirectory, Silent, Trained, make_agreement, train
from fedveil.study.pipeline import LinearTask, NetworkTask, Task
from fedveil.study.simulation import Simulated

__all__ = ["Arena", "Included", "Indices", "Remembering", "colluders_of", "embedded", "plant", "small"]

Indices = npt.NDArray[np.int64]
Included = npt.NDArray[np.bool_]
IMAGES = {"patient": 3, "image": 1}
"""Images of a canary by the unit; of a patient several, so that a bound per image rather than per patient shows."""
SAMPLE = 64


@final
class Colluder(Site):
    """A site of the attacker: it follows the protocol, and its share of the sum is zero, noise included."""

    def _protect(
        self, request: Request, agreement: Agreement, release: Release, total: Vector
    ) -> Vector | Words32 | Words64:
        if release.integer is None:
            return np.zeros_like(total)
        words = np.zeros(release.dimension, dtype=release.integer.word)
        masked = self._secure[agreement.digest].mask(request.attempt, words, release.name)
        return cast(Words32 | Words64, masked)


@final
class Remembering:
    """A learner that computes the sum of each sample of units once: contributions do not depend on chance."""

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._known: dict[tuple[bytes, ...], Vector] = {}

    @property
    def dimension(self) -> int:
        """Of the learner."""
        return self._learner.dimension

    @property
    def units(self) -> int:
        """Of the learner."""
        return self._learner.units

    def check_parameters(self, parameters: Vector, *, judged: bool = False) -> None:
        """As the learner does."""
        self._learner.check_parameters(parameters, judged=judged)

    def contribution(self, parameters: Vector, *, clip_norm: float, units: Indices | None = None) -> Vector:
        """The learner's sum of contributions."""

        def made() -> Vector:
            return self._learner.contribution(parameters, clip_norm=clip_norm, units=units)

        return self._once(made, "contribution", parameters, units, clip_norm)

    def statistics(self, parameters: Vector, units: Indices | None = None, *, plain: bool = False) -> Vector:
        """The learner's statistics."""

        def made() -> Vector:
            return self._learner.statistics(parameters, units, plain=plain)

        return self._once(made, "statistics", parameters, units, plain)

    def _once(
        self, make: Callable[[], Vector], what: str, parameters: Vector, units: Indices | None, more: float
    ) -> Vector:
        drawn = b"all" if units is None else np.asarray(units).tobytes()
        key = what.encode(), parameters.tobytes(), drawn, repr(more).encode()
        if key not in self._known:
            self._known[key] = make()
        return self._known[key].copy()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Arena:
    """A study with canaries.

    Attributes:
        prepared: the study's data with the rows of all canaries, which no site holds yet.
        task: the same behind the study's model.
        agreement: the study's, equal in all worlds.
        canaries: rows of each canary patient.
        homes: the hospital of each.
        hospitals: who trains; simulated ones by default. Real services have no sites that collude with the attacker.
    """

    prepared: Prepared
    task: Task
    agreement: Agreement
    canaries: tuple[Indices, ...]
    homes: tuple[str, ...]
    hospitals: Hospitals | None = None

    def world(self, included: Included) -> Prepared:
        """The hospitals with these canaries among their patients, training and held-out alike."""
        rows = {
            name: [self.canaries[i] for i in np.flatnonzero(included) if self.homes[i] == name]
            for name in self.prepared.sites
        }
        more = {name: np.concatenate([*own, np.empty(0, np.int64)]) for name, own in rows.items()}
        prepared = self.prepared
        return replace(
            prepared,
            sites={name: np.concatenate([old, more[name]]) for name, old in prepared.sites.items()},
            held_out={name: np.concatenate([old, more[name]]) for name, old in prepared.held_out.items()},
        )

    def hospital(self, rows: Indices) -> HospitalUnits:
        """Units of some rows, as queries use them."""
        return HospitalUnits(learner=self.task.learner(rows), held_out=self.task.held_out(rows))

    @contextmanager
    def open(
        self,
        included: Included,
        watch: Callable[[Seen], None] = lambda _: None,
        colluders: frozenset[str] = frozenset(),
    ) -> Iterator[Coordinator]:
        """A coordinator whose sites have admitted the study in the world with these canaries."""
        with tempfile.TemporaryDirectory(prefix="fedveil-audit-") as folder:
            directory = RunDirectory.create(Path(folder) / "world", self.prepared.study)
            hospitals = Simulated(made=dict.fromkeys(colluders, Colluder))
            with hospitals.join(self.world(included), self.task, directory) as joined:
                yield Coordinator(joined.agreement, joined.transport, watch=watch)

    def train(
        self,
        included: Included,
        watch: Callable[[Seen], None] = lambda _: None,
        colluders: frozenset[str] = frozenset(),
    ) -> Trained:
        """Run the whole study in the world with these canaries."""
        with tempfile.TemporaryDirectory(prefix="fedveil-audit-") as folder:
            directory = RunDirectory.create(Path(folder) / "world", self.prepared.study)
            hospitals = self.hospitals or Simulated(made=dict.fromkeys(colluders, Colluder))
            with directory, hospitals.join(self.world(included), self.task, directory) as joined:
                return train(
                    self.prepared.study,
                    joined.agreement,
                    self.task.model,
                    joined.transport,
                    directory,
                    evaluate=lambda *_: None,
                    progress=Silent(),
                    watch=watch,
                )

    def view(self, seen: Seen, home: str) -> Vector:
        """What an attacker sees of a hospital's canary in a round, as a noisy sum of contributions."""
        trust = self.agreement.trust
        total = np.asarray(seen.answers[home], np.float64) if trust == "site" else seen.total
        query = seen.release.query
        return query.direction(NoisySum(total, 1.0), 1.0).total if isinstance(query, Rounds) else total


def embedded(prepared: Prepared, task: Task) -> Prepared:
    """The study with the features that its encoder computed in place of images, which any hospital can be given.

    Raises:
        StudyError: the study trains a network, has findings or grades, or releases what is known of held-out patients.
    """
    if not isinstance(task, LinearTask) or not isinstance(task.head, CentredHead):
        raise StudyError(
            "the study trains a network, or its labels are findings or grades",
            "an audit gives running services features in directions of the attacker's choice",
            "leave out --services",
        )
    if prepared.study.privacy.about_held_out:
        raise StudyError(
            "privacy.evaluation_share or privacy.subgroup_share is above 0",
            "each running service would hold out patients of its own, whom the attacker does not know",
            "leave out --services, or set both to 0",
        )
    vectors = task.features[np.arange(len(prepared.dataset))]
    pinned = {"features": PRECOMPUTED, "dimension": vectors.shape[1], "whitened": False}
    model = prepared.study.model.model_copy(update=pinned)
    study = prepared.study.model_copy(update={"model": model})
    return replace(prepared, study=study, dataset=replace(prepared.dataset, images=Embeddings(vectors)))


def colluders_of(agreement: Agreement, home: str, *, inside: bool = False) -> frozenset[str]:
    """Sites that the guarantee allows to collude with the attacker: under secure aggregation all but the honest shares,
    and with noise in local steps all but the canary's own."""
    if agreement.trust != "secure-aggregation":
        return frozenset()
    others = [site for site in agreement.sites if site != home]
    most = len(others) if inside else len(agreement.sites) - agreement.honest
    return frozenset(others[len(others) - most :])


def small(prepared: Prepared, patients: int = 2) -> Prepared:
    """The same hospitals with a few patients each: neighbours may be any two cohorts, and small ones take less time."""

    def few(rows: Indices) -> Indices:
        owners = prepared.dataset.patients[rows]
        return rows[np.isin(owners, np.unique(owners)[:patients])]

    return replace(
        prepared,
        sites={name: few(rows) for name, rows in prepared.sites.items()},
        held_out={name: few(rows) for name, rows in prepared.held_out.items()},
    )


def plant(
    prepared: Prepared,
    task: Task,
    homes: tuple[str, ...],
    generator: np.random.Generator,
) -> Arena:
    """Add one canary per home, a patient or an image, with features that are as orthogonal as there is room for.

    For a network its images are black and white at random. Labels are random.
    """
    dataset, count, images = prepared.dataset, len(homes), IMAGES[prepared.study.privacy.unit]
    first, patients = len(dataset), len(dataset.patient_names)
    filler = np.zeros(count * images, dtype=np.int64)
    rows = first + np.arange(count * images).reshape(count, images)
    labels = np.repeat(generator.integers(len(dataset.classes), size=count), images)
    whole = dataset.subset(np.concatenate([np.arange(first), filler]))
    own = np.repeat(np.arange(count), images) + patients
    dataset = replace(
        whole,
        labels=np.concatenate([dataset.labels, labels]),
        patients=np.concatenate([dataset.patients, own]),
        patient_names=(*dataset.patient_names, *(f"canary-{number + 1}" for number in range(count))),
        split=np.concatenate([dataset.split, np.zeros(count * images, np.int8)]),
    )
    planted = _with_canaries(replace(task, dataset=dataset), first, count, images, generator)
    study = prepared.study
    return Arena(
        prepared=replace(prepared, dataset=dataset),
        task=planted,
        agreement=make_agreement(study, sites=tuple(prepared.sites), model=task.model),
        canaries=tuple(rows),
        homes=homes,
    )


def _with_canaries(task: Task, first: int, count: int, images: int, generator: np.random.Generator) -> Task:
    """The task with the canaries' inputs in the rows from ``first`` on."""
    if isinstance(task, LinearTask) and isinstance(task.head, ClassHead):
        points = np.repeat(_directions(task.head.blocks, count, generator), images, axis=0)
        features = np.concatenate([task.features, points])
        degraded = None if task.degraded is None else np.concatenate([task.degraded, points])
        return replace(task, features=features, degraded=degraded)
    assert isinstance(task, NetworkTask)
    sample = task.images.read(np.arange(min(first, SAMPLE)))
    low, high = sample.min(), sample.max()
    coins = generator.random((count, *sample.shape[1:])) < 0.5
    pixels = np.repeat(np.where(coins, low, high).astype(np.float32), images, axis=0)
    return replace(task, images=_Planted(task.images, first, pixels))


@dataclass(frozen=True, slots=True, eq=False)
class _Planted:
    """Images of a source, and canaries' in the rows after them."""

    source: ImageSource
    first: int
    pixels: npt.NDArray[np.float32]

    def read(self, indices: Indices) -> npt.NDArray[np.float32]:
        rows = np.asarray(indices)
        result = np.empty((len(rows), *self.pixels.shape[1:]), np.float32)
        old = rows < self.first
        if old.any():
            result[old] = self.source.read(rows[old])
        result[~old] = self.pixels[rows[~old] - self.first]
        return result


def _directions(
    blocks: tuple[int, ...], count: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Points (count, features) that are orthonormal within each block, as far as the block is long enough."""
    parts = []
    for length in blocks:
        bases = [np.linalg.qr(generator.normal(size=(length, length)))[0] for _ in range(-(-count // length))]
        parts.append(np.concatenate(bases)[:count])
    return np.concatenate(parts, axis=1).astype(np.float32)
