"""What accuracy a planned study may hope for, from its signal-to-noise ratio and the tasks that fedveil knows."""

import math
from dataclasses import dataclass
from typing import Any

from fedveil.federation import Agreement
from fedveil.planning.laws import Reference, references
from fedveil.study.prepare import Prepared
from fedveil.study.recipes import Recipe
from fedveil.study.settings.schema import Study
from fedveil.study.steps import signal_to_noise

__all__ = ["Outlook", "make_outlook"]

FAINT, LOST = 120.0, 40.0
"""Below the first ratio the threshold between the classes goes astray, below the second the ranking does too.

Over the known tasks balanced accuracy falls before AUROC does, and runs of one setting differ by 0.1 of AUROC (standard
deviation) where nu is below 40.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is predicted before anything runs.

    Attributes:
        ratio: nu, the signal-to-noise ratio of training (`fedveil.learning.step_size`).
        patients: training patients over all sites.
        laws: by known task, how accuracy depends on both, by the study's method.
        other_features: whether the study's features are others than those that the laws were measured on.
    """

    ratio: float
    patients: int
    laws: tuple[Reference, ...]
    other_features: bool = False

    @property
    def auroc(self) -> dict[str, float]:
        """By known task, the AUROC that it would reach with as many patients at this ratio."""
        return {law.name: law.expected(self.patients, self.ratio) for law in self.laws}

    @property
    def notes(self) -> list[str]:
        """What speaks against running the study as it stands."""
        found = []
        if self.laws and self.other_features:
            found.append(
                "The AUROC to expect was measured on the default features; the study's are others, and may give more "
                "or less."
            )
        if self.ratio >= FAINT:
            return found
        return [
            *found,
            f"The signal-to-noise ratio of training is {self.ratio:.0f}. Below about {FAINT:.0f} a model may rank "
            f"images well and yet call nearly all of them the same; below about {LOST:.0f} chance decides what it "
            "learns. A larger epsilon, more patients or another trust would help: see `fedveil plan --cohorts`.",
        ]

    def explain(self) -> list[str]:
        """The arithmetic, line by line."""
        found = [f"signal-to-noise ratio nu = units x mu / what trust makes of the noise = {self.ratio:.1f}"]
        return found + [line for law in self.laws for line in law.explain(self.patients, self.ratio)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"signal_to_noise": self.ratio, "auroc_on_tasks_like": self.auroc}


def make_outlook(prepared: Prepared, agreement: Agreement) -> Outlook | None:
    """The outlook of a private linear head on patients or images; None for what the known tasks say nothing about."""
    study = prepared.study
    known = study.model.network == "linear" and study.training.method != "averaging"
    if not known or agreement.trust == "none" or study.privacy.unit == "site":
        return None
    ratio = signal_to_noise(agreement, sum(prepared.units.values()))
    binary = len(prepared.dataset.classes) == 2 and math.isfinite(ratio)
    recipe = Recipe(method=study.training.method)
    laws = [by[recipe]["auroc"] for by in references().values() if recipe in by]
    default = Study().model
    return Outlook(
        ratio=ratio,
        patients=sum(prepared.patients.values()),
        laws=tuple(laws) if binary else (),
        other_features=(study.model.features, study.model.whitened) != (default.features, default.whitened),
    )
