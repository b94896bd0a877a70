"""The accuracy to expect of a planned study, from its signal-to-noise ratio and fedveil's reference tasks."""

import math
from dataclasses import dataclass
from typing import Any

from fedveil.federation import Agreement
from fedveil.planning.laws import Reference, references
from fedveil.study.prepare import Prepared
from fedveil.study.recipes import Recipe
from fedveil.study.results.reliability import noise_notes
from fedveil.study.settings.schema import Study
from fedveil.study.steps import signal_to_noise

__all__ = ["Outlook", "make_outlook"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is predicted before anything runs.

    Attributes:
        ratio: nu, the signal-to-noise ratio of training (`fedveil.learning.step_size`).
        patients: training patients over all sites.
        laws: by known task, how accuracy depends on both, by the study's method.
        other_features: whether the study's features differ from those that the laws were measured on.
        pulled: whether training is pulled towards a public model, which the laws do not know.
    """

    ratio: float
    patients: int
    laws: tuple[Reference, ...]
    other_features: bool = False
    pulled: bool = False

    @property
    def auroc(self) -> dict[str, float]:
        """The AUROC of each known task with this number of patients at this ratio."""
        return {law.name: law.expected(self.patients, self.ratio) for law in self.laws}

    @property
    def notes(self) -> list[str]:
        """Reasons against running the study as it is."""
        found = []
        if self.laws and self.other_features:
            found.append(
                "The expected AUROC was measured on the default features; the study uses others, and may reach more or "
                "less."
            )
        if self.pulled:
            found.append(
                "The expected AUROC is that of the same study without model.start. A start for the same task helps "
                "most where the ratio is small. How much depends on how alike the tasks are, which is not known before."
            )
        return found + noise_notes(self.ratio)

    def explain(self) -> list[str]:
        """The arithmetic, line by line."""
        found = [f"signal-to-noise ratio nu = units x mu / what trust makes of the noise = {self.ratio:.1f}"]
        return found + [line for law in self.laws for line in law.explain(self.patients, self.ratio)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"signal_to_noise": self.ratio, "auroc_on_tasks_like": self.auroc}


def make_outlook(prepared: Prepared, agreement: Agreement) -> Outlook | None:
    """The outlook of a private linear head on patients or images; None if the known tasks do not apply."""
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
        pulled=study.model.start is not None or bool(study.model.start_sha256),
    )
