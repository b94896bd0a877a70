"""From an approved study to a site that can answer: the hospital's images, read once and kept as features."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedveil.data import load
from fedveil.deploy.config import SiteConfig
from fedveil.deploy.identity import Identity
from fedveil.deploy.offer import Offer
from fedveil.deploy.peers import Peers
from fedveil.errors import DataError, Refused
from fedveil.federation import Site, Terms
from fedveil.federation.secure import Identity as Signer
from fedveil.privacy import Ledger
from fedveil.study import TrainedModel
from fedveil.study.evaluation import TestSet
from fedveil.study.progress import Silent
from fedveil.study.task import Task, make_task

__all__ = ["Cohorts", "check_unit"]


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

    def open(self, offer: Offer, terms: Terms, ledger: Ledger | None) -> Site:
        """A site that has admitted the terms; everything that could refuse them has been asked.

        Raises:
            FedveilError: the images, the policy or the budget do not allow the study. Nothing is charged.
        """
        self.config.check(terms)
        check_unit(self.config, terms)
        task = self.task(offer)
        site = Site(
            self.config.site.name,
            task.learner(self._rows(task, task.dataset.train)),
            self.config.core_policy(),
            ledger,
            self._signer(),
            held_out=task.held_out(self._rows(task, task.dataset.test)),
        )
        site.admit(terms)
        return site

    def judge(self, offer: Offer, model: TrainedModel) -> dict[str, Any] | None:
        """How good a model is on the images that the hospital tests on; exact, so nothing of it may leave."""
        task = self.task(offer)
        test = TestSet(task, self._rows(task, task.dataset.test))
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
        key = json.dumps([values["data"], values["model"], offer.classes, offer.channels], sort_keys=True)
        if key not in self.tasks:
            dataset = load(
                self.config.data.source,
                image_size=study.data.image_size,
                positive=study.data.positive or None,
                classes=offer.classes,
                base=self.config.folder,
                test_fraction=self.config.data.test_fraction,
                allow_patient_overlap=self.config.data.allow_patient_overlap,
            )
            if dataset.images.channels != offer.channels:
                raise DataError(
                    f"the images here have {dataset.images.channels} channels",
                    f"the study's have {offer.channels}",
                    "convert them, or leave the study",
                )
            self.tasks[key] = make_task(study, dataset, Silent())
        return replace(self.tasks[key], study=study)

    def _rows(self, task: Task, part: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Images of this hospital among the training or the test images."""
        dataset, wanted = task.dataset, self.config.data.site
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


def check_unit(config: SiteConfig, terms: Terms) -> None:
    """Refuse a study whose guarantee protects something else than the hospital's budget counts."""
    unit = terms.target.unit
    if terms.trust != "none" and unit != config.budget.unit:
        raise Refused(
            f"the study protects each {unit}",
            f"this site's budget is kept for each {config.budget.unit}",
            "change privacy.unit in the study, or keep a second site folder for that unit",
        )
