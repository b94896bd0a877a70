"""From an approved study to a site that can answer: the hospital's images, read once and kept as features."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data import Dataset, Settings, load
from fedveil.deploy.config import SiteConfig
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.peers import Peers
from fedveil.errors import DataError
from fedveil.federation import Site, Terms
from fedveil.federation.secure import Identity as Signer
from fedveil.privacy import Ledger
from fedveil.study import TrainedModel
from fedveil.study.evaluation import TestSet
from fedveil.study.progress import Silent
from fedveil.study.task import Task, make_task

__all__ = ["Cohorts"]

HELD_OUT = b"fedveil patients held out 1"
"""What the hospital's secret is for that decides who is held out."""


@dataclass(slots=True)
class Cohorts:
    """A hospital's images as each study sees them; studies that see them alike share one copy.

    Attributes:
        config: the hospital's settings.
        identity: its signing key.
        tasks: features and labels in memory, by what they depend on.
    """

    config: SiteConfig
    identity: Identity
    tasks: dict[str, Task] = field(default_factory=dict)

    def agree(self, terms: Terms, ledger: Ledger) -> None:
        """Refuse terms by what is public or decided here: policy, bounds, budget. No image is asked, none tells.

        Raises:
            FedveilError: the policy or the budget does not allow the study.
        """
        self.config.check(terms)
        begun = any(charge.study == terms.title for charge in ledger.state.charges)
        if terms.trust != "none" and not begun:
            ledger.admit(*(release.mechanism for release in terms.releases))

    def open(self, offer: Offer, terms: Terms, ledger: Ledger) -> Site:
        """A site that has admitted the terms; everything that could refuse them has been asked.

        Raises:
            FedveilError: the policy, the budget or the images do not allow the study. Nothing is charged.
        """
        self.agree(terms, ledger)
        task = self.task(offer)
        site = Site(
            self.config.site.name,
            task.learner(self.own(task.dataset, task.dataset.train)),
            self.config.core_policy(),
            ledger,
            self._signer(),
            held_out=task.held_out(self.own(task.dataset, task.dataset.test)),
        )
        site.admit(terms)
        return site

    def judge(self, offer: Offer, model: TrainedModel) -> dict[str, Any] | None:
        """How good a model is on the images that the hospital tests on; exact, so nothing of it may leave."""
        task = self.task(offer)
        test = TestSet(task, self.own(task.dataset, task.dataset.test))
        if not len(test.rows):
            return None
        return test.metrics(test.probabilities(model.parameters), model.frequencies)

    def _signer(self) -> Signer:
        """The hospital's own key, and the keys of the others that its people confirmed."""
        pinned = {
            name: bytes.fromhex(key) for name, key in Peers(self.config.folder / "peers").known().items()
        }
        own = {self.config.site.name: bytes.fromhex(self.identity.public)}
        return Signer(self.identity.key, {**pinned, **own})

    def task(self, offer: Offer) -> Task:
        """The hospital's images and their features for a study."""
        study = offer.study
        values: dict[str, Any] = study.model_dump(mode="json")
        calibrated = study.privacy.calibration_share > 0
        seen = [values["data"], values["model"], values["training"], study.study.seed, calibrated]
        key = json.dumps([seen, offer.classes, offer.channels], sort_keys=True)
        if key not in self.tasks:
            self.tasks[key] = make_task(study, self.dataset(offer), Silent())
        return replace(self.tasks[key], study=study)

    def dataset(self, offer: Offer | None = None) -> Dataset:
        """The hospital's images as a study sees them, or as they are; no pixel is read.

        In a study an image that cannot be used counts as nothing: whether this hospital takes part does not depend
        on one file. The log names it, and so does `fedveil site check`.

        Raises:
            DataError: they cannot be used, or this budget's words do not fit them.
        """
        own: Settings = {**self.config.data.settings, "secret": self.identity.secret(HELD_OUT)}
        if offer:
            public = offer.study.data.public
            own = {**own, **public, "classes": offer.classes, "channels": offer.channels, "leave_out": True}
        dataset = load(self.config.data.source, base=self.config.folder, **own)
        self._check_units(dataset)
        return dataset

    def own(self, dataset: Dataset, part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Images of this hospital among some of the data set's."""
        wanted = self.config.data.site
        if wanted is None:
            return part
        if dataset.sites is None or wanted not in dataset.site_names:
            raise DataError(
                f"data.site is {wanted!r}",
                f"the data names {', '.join(dataset.site_names) or 'no sites'}",
                "correct it in site.toml, or leave it out",
            )
        here = dataset.sites == dataset.site_names.index(wanted)
        return np.intersect1d(part, np.flatnonzero(here))

    def _check_units(self, dataset: Dataset) -> None:
        """Refuse images whose patients nobody names where the budget is theirs, and more units than it is kept for."""
        unit, most = self.config.budget.unit, self.config.budget.max_units
        if unit == "site":
            return
        if unit == "patient" and not (dataset.patients_known or self.config.data.one_image_a_patient):
            raise DataError(
                f"{self.config.data.source} names no patients",
                "this site's budget is kept for each patient, with all of their images",
                "add a patient column; if no two images show the same patient, set data.one_image_a_patient = true",
            )
        rows = self.own(dataset, np.arange(len(dataset)))
        units = len(rows) if unit == "image" else len(np.unique(dataset.patients[rows]))
        if units > most:
            raise DataError(
                f"there are {units:,} {unit}s",
                f"budget.max_units says {most:,} at most, and studies are checked against that",
                "raise it in site.toml if the budget's delta allows, or leave images out",
            )
