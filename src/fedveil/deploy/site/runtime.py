"""From an approved study to a site that can answer: the hospital's images, read once and stored as features.

`Cohorts.check` is for the person who approves: it refuses any problem with the images. `Cohorts.open` is for the
service afterwards: it depends only on policy and budget. An unusable image contributes nothing there, and if all are
unusable the site answers with noise; only the hospital's own log says so.
"""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, Options, Settings, is_path, load, load_usable
from fedveil.data.formats.folder import guessed_layout
from fedveil.deploy.identity import Identity, signing_key
from fedveil.deploy.offer import Offer
from fedveil.deploy.records.forgotten import Forgotten
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers, patients_identity
from fedveil.deploy.site.offline import offline
from fedveil.errors import DataError, FedveilError
from fedveil.federation import Agreement, Site
from fedveil.federation.secure_rounds import Identity as Signer
from fedveil.learning import HeldOut, Learner, Model
from fedveil.privacy import Ledger
from fedveil.study import TrainedModel
from fedveil.study.evaluation import TestSet
from fedveil.study.pipeline import Task, make_task, model_of
from fedveil.study.progress import Silent

__all__ = ["Cohorts"]

log = logging.getLogger("fedveil.site")
Rows = npt.NDArray[np.int64]

_NAMED = "patient "
"""What `load_usable` puts before the name of a patient, and not before that of an image without one."""

HELD_OUT = b"fedveil patients held out 1"
"""The purpose of the hospital's secret that decides which patients are held out."""


@dataclass(slots=True)
class Cohorts:
    """A hospital's images as each study uses them; studies with the same preprocessing share one copy.

    Attributes:
        config: the hospital's settings.
        identity: its signing key.
        tasks: features and labels in memory, keyed by what they depend on.
    """

    config: SiteConfig
    identity: Identity
    tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def forgotten(self) -> Forgotten:
        """The patients who withdrew."""
        return Forgotten(self.config.folder, self._patients)

    @property
    def _patients(self) -> Identity:
        return patients_identity(self.config.folder, self.identity)

    def agree(self, agreement: Agreement, ledger: Ledger) -> None:
        """Refuse an agreement by public facts and this site's settings: policy, bounds, budget. Independent of the
        images.

        Raises:
            FedveilError: the policy or the budget does not allow the study.
        """
        self.config.check(agreement)
        begun = any(charge.study == agreement.title for charge in ledger.state.charges)
        if agreement.trust != "none" and not begun:
            ledger.admit(*(release.mechanism for release in agreement.releases))

    def open(self, offer: Offer, agreement: Agreement, ledger: Ledger) -> Site:
        """A site that has admitted the agreement. Whether it exists and what it admits is independent of the images.

        Raises:
            FedveilError: the policy or the budget does not allow the study. Nothing is charged.
        """
        self.agree(agreement, ledger)
        learner, held_out = self._learner(offer)
        site = Site(
            self.config.site.name,
            learner,
            self.config.core_policy(),
            ledger,
            self._signer(),
            held_out=held_out,
            model=self._model(offer) if learner is None else None,
        )
        site.admit(agreement)
        return site

    def _learner(self, offer: Offer) -> tuple[Learner | None, HeldOut | None]:
        """The learner of a study's images; an empty one if none can be used, which only the log tells."""
        try:
            task = self.task(offer)
            train, test = (
                self._usable(task.dataset, task.dataset.train),
                self._usable(task.dataset, task.dataset.test),
            )
            if not len(train):
                log.error("no training image can be used: this site answers with noise alone")
            return (task.learner(train) if len(train) else None), task.held_out(test)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the images stays in this hospital
            log.error(
                "the images cannot be used (%s): this site answers with noise alone, charged as usual, until they are "
                "corrected and the service is restarted",
                error,
            )
            return None, None

    def _model(self, offer: Offer) -> Model | None:
        """The study's model without any image; None if this machine cannot build it."""
        size = offer.study.data.image_size
        try:
            return model_of(
                offer.study,
                Dataset.empty(
                    offer.classes,
                    channels=offer.channels,
                    image_size=size,
                    task=offer.study.data.meaning,
                ),
            )
        except FedveilError:
            return None

    def judge(self, offer: Offer, model: TrainedModel) -> dict[str, Any] | None:
        """A model's metrics on the hospital's test images; exact, so they must not leave the hospital."""
        task = self.task(offer)
        test = TestSet(task, self._usable(task.dataset, task.dataset.test))
        if not len(test.rows):
            return None
        return test.metrics(test.probabilities(model.parameters), model.frequencies)

    def _signer(self) -> Signer:
        """The hospital's own key, and the confirmed keys of the others."""
        pinned = {name: signing_key(key) for name, key in Peers(self.config.folder / "peers").known().items()}
        own = {self.config.site.name: signing_key(self.identity.public)}
        return Signer(self.identity.key, {**pinned, **own})

    def task(self, offer: Offer) -> Task:
        """The hospital's images and their features for a study."""
        key = _seen(offer)
        task = self.tasks.get(key)
        if task is None:
            task = self.tasks[key] = make_task(offer.study, self._seen_by(offer), Silent(), apart=offline)
        return replace(task, study=offer.study)

    def keep(self, offers: Iterable[Offer]) -> None:
        """Free all features that none of these studies uses."""
        needed = {_seen(offer) for offer in offers}
        for key in self.tasks.keys() - needed:
            self.tasks.pop(key, None)

    def dataset(self, offer: Offer | None = None, classes: tuple[str, ...] | None = None) -> Dataset:
        """The hospital's images as a study uses them or, without one, as they are; no pixel is read.

        Raises:
            DataError: they cannot be used, or do not match the budget's settings.
        """
        dataset = self.forgotten.without(self.everybody(offer, classes))
        self._check_units(dataset)
        return dataset

    def everybody(self, offer: Offer | None = None, classes: tuple[str, ...] | None = None) -> Dataset:
        """The same with the images of patients who withdrew, for the record of a withdrawal only.

        Raises:
            DataError: they cannot be used.
        """
        self._check_layout()
        return load(self.config.data.source, base=self.config.folder, **self.settings(offer, classes))

    def check(self, offer: Offer) -> None:
        """Refuse images or a model that a study cannot use, before a person approves it.

        Raises:
            DataError: an image cannot be used.
            InvalidValue: the study's model cannot be built here, for example because its public weights are missing,
                or its encoder is not registered here.
        """
        dataset = self.dataset(offer)
        model_of(offer.study, dataset)
        encoder = offer.study.model.encoder.spec(offer.study.model.features)
        if encoder is not None:
            from fedveil.learning.encoders.external import verify  # here, since only such encoders need torch

            verify(encoder)
        if not len(self.own(dataset, dataset.train)):
            raise DataError(
                f"{self.config.data.source} has no training patients for this hospital",
                "a site needs at least one patient",
                "correct data.source or data.site in site.toml, or do not join the study",
            )

    def _check_layout(self) -> None:
        """Refuse a folder whose levels nobody has named: one image more must not give all others another class."""
        data = self.config.data
        folder = self.config.folder / data.source
        if is_path(data.source) and folder.is_dir() and not data.layout:
            raise DataError(
                f"{data.source} is a folder, and data.layout is not set",
                "in a federation what folders mean must not follow from how most images lie",
                f'set layout = "{guessed_layout(folder)}" in [data] of site.toml, if that is right',
            )

    def settings(self, offer: Offer | None, classes: tuple[str, ...] | None = None) -> Settings:
        """The settings for reading images: the hospital's own, and the study's public ones."""
        own: Settings = {**self.config.data.settings, "secret": self._patients.secret(HELD_OUT)}
        if offer is None:
            return {**own, "classes": classes} if classes else own
        return {
            **own,
            **offer.study.data.public,
            "classes": offer.classes,
            "channels": offer.channels,
        }

    def _seen_by(self, offer: Offer) -> Dataset:
        """The images that a study can use, each checked independently."""
        named = self.config.budget.unit == "patient" and not self.config.data.one_image_a_patient
        usable = load_usable(
            self.config.data.source,
            Options.of(self.settings(offer)),
            base=self.config.folder,
            need_patients=named,
        )
        return self.forgotten.without(usable, prefix=_NAMED)

    def _usable(self, dataset: Dataset, part: Rows) -> Rows:
        """This hospital's images among usable ones; none if no image names it."""
        wanted = self.config.data.site
        if wanted is not None and wanted not in dataset.site_names:
            return part[:0]
        return self.own(dataset, part)

    def own(self, dataset: Dataset, part: Rows) -> Rows:
        """This hospital's images among some of the data set's."""
        wanted = self.config.data.site
        if wanted is None:
            return part
        if dataset.sites is None or wanted not in dataset.site_names:
            raise DataError(
                f"data.site is {wanted!r}",
                f"the data names {', '.join(dataset.site_names) or 'no sites'}",
                "correct it in site.toml, or remove it",
            )
        here = dataset.sites == dataset.site_names.index(wanted)
        return np.intersect1d(part, np.flatnonzero(here))

    def _check_units(self, dataset: Dataset) -> None:
        """Refuse images without patient names if the budget's unit is the patient, and more units than its bound."""
        unit, most = self.config.budget.unit, self.config.budget.max_units
        if unit == "site":
            return
        if unit == "patient" and not (dataset.patients_known or self.config.data.one_image_a_patient):
            raise DataError(
                f"{self.config.data.source} names no patients",
                "this site's budget protects each patient with all of their images",
                "add a patient column; if no two images show the same patient, set data.one_image_a_patient = true",
            )
        rows = self.own(dataset, np.arange(len(dataset)))
        units = len(rows) if unit == "image" else len(np.unique(dataset.patients[rows]))
        if units > most:
            raise DataError(
                f"there are {units:,} {unit}s",
                f"budget.max_units allows {most:,} at most, and studies are checked against that",
                "increase it in site.toml if the budget's delta allows, or remove images",
            )


def _seen(offer: Offer) -> str:
    """Everything that a study's features and labels depend on."""
    study = offer.study
    values: dict[str, Any] = study.model_dump(mode="json")
    calibrated = study.privacy.calibration_share > 0
    seen = [values["data"], values["model"], values["training"], study.study.seed, calibrated]
    return json.dumps([seen, offer.classes, offer.channels], sort_keys=True)
