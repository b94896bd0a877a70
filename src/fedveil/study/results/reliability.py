"""What a reader of a model must know about its noise, from public numbers: shown by a plan, a run and its report."""

from fedveil.federation import Agreement
from fedveil.learning import Certainty
from fedveil.study.steps import signal_to_noise

__all__ = ["FAINT", "LOST", "decision_notes", "noise_notes", "training_ratio"]

FAINT, LOST = 120.0, 40.0
"""Below the first ratio the threshold between the classes is unreliable, below the second the ranking is too.

Over the known tasks balanced accuracy falls before AUROC does. Where nu is below 40, AUROC has a standard deviation
of 0.1 between runs of one setting.
"""
UNSURE = 0.25
"""A threshold known to less than this fraction of the distance between the classes is called uncertain."""


def training_ratio(agreement: Agreement, units: float) -> float | None:
    """nu of a study's training by this number of units, public or released; None without privacy or by sites."""
    private = agreement.trust != "none" and agreement.target.unit != "site"
    return signal_to_noise(agreement, units) if private else None


def noise_notes(ratio: float) -> list[str]:
    """A warning where noise may have won; none otherwise.

    >>> noise_notes(500.0), len(noise_notes(50.0))
    ([], 1)
    """
    if ratio >= FAINT:
        return []
    return [
        f"The signal-to-noise ratio of training is {ratio:.0f}. Below about {FAINT:.0f} a model may rank "
        f"images well and still assign nearly all of them to one class; below about {LOST:.0f} it learns mostly "
        "noise. A larger epsilon, more patients or another trust level would help: see `fedveil plan --cohorts`."
    ]


def decision_notes(certainty: Certainty | None, *, skipped: bool, findings: bool) -> list[str]:
    """How sure the decision rule is, where it is not."""
    if skipped:
        return [
            "The calibration release was not made, because noise was known to drown it: nothing was charged for it, "
            "and the threshold is that of training."
        ]
    if certainty is None or certainty.error <= UNSURE:
        return []
    which = "decision threshold of the least certain finding" if findings else "decision threshold"
    return [
        f"The {which} is uncertain by {min(certainty.error, 9.99):.0%} of the distance between the classes "
        f"(one standard deviation): noise left {certainty.weight:.0%} of the measured shift, and the rest is no shift."
    ]
