"""The guarantee in plain words: what is protected, from whom, and what is not. This is what a privacy officer signs.

Every sentence is a claim. It follows from the definition of (epsilon, delta) differential privacy under
adding or removing one unit (Dwork and Roth 2014, section 2.3), or from what each party sees at each trust level.
"""

from dataclasses import dataclass

from fedveil.privacy import Guarantee
from fedveil.report import formatting
from fedveil.report.records import RunRecord
from fedveil.study.results.schema import SecureAggregation

__all__ = ["Notice", "Statement", "guarantee_line", "not_protected", "notices", "protected", "trust_name"]


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim in a few words, and what it means."""

    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice at the top of the page. `level` is "danger", "caution" or "information"."""

    level: str
    title: str
    text: str


_TRUST = {
    "site": "trusting nobody outside the hospital (local DP)",
    "secure-aggregation": "under secure aggregation (distributed DP)",
    "server": "trusting the server (central DP)",
}
_UNIT = {
    "patient": "One patient, with all of that patient’s images together",
    "image": "One image",
    "site": "One whole hospital, with all of its patients",
}
_ABSENT = {
    "patient": "had that patient’s images never been used",
    "image": "had that image never been used",
    "site": "had that hospital never taken part",
}
_GROUP = {
    "patient": "A family, a ward, all patients of a rare kind",
    "image": "A patient with several images is a group of images",
    "site": "A chain of hospitals",
}


def trust_name(guarantee: Guarantee, secure: SecureAggregation | None) -> str:
    """The guarantee's trust level, in a few words."""
    name = _TRUST[guarantee.trust]
    return f"{name} (masks simulated)" if secure and secure.simulated else name


def guarantee_line(guarantee: Guarantee, secure: SecureAggregation | None) -> str:
    """The complete guarantee on one line."""
    epsilon, delta = formatting.at_most(guarantee.epsilon), formatting.delta(guarantee.delta)
    return (
        f"ε ≤ {epsilon}, δ = {delta} per {guarantee.unit} (adding or removing one), "
        f"{trust_name(guarantee, secure)}"
    )


def protected(guarantee: Guarantee, secure: SecureAggregation | None) -> tuple[Statement, ...]:
    """What the guarantee promises, against whom, and for which releases."""
    ratio, delta = formatting.factor(guarantee.epsilon), formatting.delta(guarantee.delta)
    return (
        Statement(
            "What is protected",
            f"{_UNIT[guarantee.unit]}. Whatever anyone does with what was released, no outcome is more than "
            f"{ratio} times as likely, or as unlikely, as it would be {_ABSENT[guarantee.unit]}, except for "
            f"an added probability of at most {delta} ({formatting.chance(guarantee.delta)}).",
        ),
        Statement("From whom", _against(guarantee, secure)),
        Statement(
            "What was released",
            "The final model, every intermediate model, and everything else visible outside the trusted "
            "parts. The guarantee covers all of it together, over all rounds, permanently: "
            "no later computation and no outside knowledge weakens it.",
        ),
    )


def _against(guarantee: Guarantee, secure: SecureAggregation | None) -> str:
    match guarantee.trust:
        case "site":
            return (
                "Everyone outside the hospital: the coordinating server, the other hospitals, all of them "
                "together, and whoever receives the model. Each hospital adds all of the noise itself, "
                "before anything leaves it."
            )
        case "secure-aggregation":
            return _against_secure_aggregation(secure)
        case _:
            return (
                "Everyone who sees the model or the results of rounds, the other hospitals included. Not "
                "the coordinating server: it sees each hospital’s sums before the noise, adds the noise "
                "itself, and has to be trusted and secured like a hospital."
            )


def _against_secure_aggregation(secure: SecureAggregation | None) -> str:
    text = (
        "The coordinating server, the other hospitals, and whoever receives the model. Each hospital adds "
        "a share of the noise and masks its sum; the masks cancel, so that only the noisy total of all "
        "hospitals can be seen."
    )
    if secure is None:
        return text
    simulated = " In this run the masks were simulated." if secure.simulated else ""
    return (
        f"{text}{simulated} The noise is sufficient if at least {secure.min_honest} of the "
        f"{secure.participants} hospitals add their share honestly and do not share their knowledge with "
        "others. If more of them collude, each hospital still has the guarantee of its own noise, "
        "given below as “ε if all others collude”."
    )


def not_protected(record: RunRecord) -> tuple[Statement, ...]:
    """What the guarantee does not promise; each point matters to a person who signs."""
    if record.guarantee is None:
        return ()
    return (
        Statement(
            "The hospital’s own staff and systems",
            "Images stay at their hospital. Its access rules, not this guarantee, determine who may see "
            "them there.",
        ),
        _test_images(record),
        _groups(record.guarantee),
        *_sizes(record),
        Statement(
            "What is true of everyone",
            "The model is intended to learn the appearance of a disease. Conclusions from that about a "
            "person hold whether or not that person took part, and do not violate this guarantee.",
        ),
        Statement(
            "Other studies on the same people",
            "Each further study spends more. A hospital’s ledger adds up what that hospital released; it "
            "does not account for a patient’s images at another hospital. "
            "A patient of two hospitals is protected as a group of two.",
        ),
        Statement(
            "A manipulated model",
            "A hospital or a server that deviates from the protocol can make the model wrong (poisoning). "
            "The guarantee limits what the model reveals; it does not ensure that its predictions are correct.",
        ),
        Statement(
            "Who takes part, and the study file",
            "The names of the hospitals, the settings of the study and the classes are public, and so is "
            "the absence of a hospital from a round.",
        ),
    )


def _test_images(record: RunRecord) -> Statement:
    noisy = (
        " What hospitals released about their held-out patients is noisy, and covered by the guarantee."
        if record.released
        else ""
    )
    if record.test is None:
        return Statement(
            "Test images", f"This study has none, so no image was shown or measured without noise.{noisy}"
        )
    shown = "the metrics, curves and example images" if record.examples else "the metrics and curves"
    return Statement(
        "The test images",
        f"Accuracy is measured without noise on the {formatting.count(record.test.n)} test images. Their patients are "
        f"outside the guarantee, though {shown} on this page come from them.{noisy}",
    )


def _sizes(record: RunRecord) -> tuple[Statement, ...]:
    """Nothing if the run states no size: those of real hospitals are private."""
    data = record.data
    total = data is not None and (data.images_train is not None or data.patients_train is not None)
    if not total and all(one.patients is None and one.images is None for one in record.sites):
        return ()
    return (
        Statement(
            "The number of training images and patients",
            "They are shown exactly, without noise, and are outside the guarantee: whoever knows of all other "
            "patients learns from them whether one more took part.",
        ),
    )


def _groups(guarantee: Guarantee) -> Statement:
    one, two = formatting.at_most(guarantee.epsilon), formatting.at_most(2 * guarantee.epsilon)
    return Statement(
        "Groups",
        f"{_GROUP[guarantee.unit]}: for k of them together epsilon is k times as large, {two} for two "
        f"instead of {one}, and delta grows even faster.",
    )


def notices(record: RunRecord) -> tuple[Notice, ...]:
    """Notices at the top of the page, most serious first."""
    found = (
        _privacy_notice(record),
        _mask_notice(record),
        _accuracy_notice(record),
        _patient_notice(record),
        _synthetic_notice(record),
    )
    return tuple(notice for notice in found if notice)


def _privacy_notice(record: RunRecord) -> Notice | None:
    if record.guarantee is None:
        return Notice(
            "danger",
            "No privacy",
            "This study ran without any noise. The model and the results of every round may reveal the "
            "images of individual patients. It is a baseline for comparison: do not release the model, and "
            "do not sign this page as a statement of privacy.",
        )
    stated, priced = record.guarantee.epsilon, record.recomputed_epsilon
    if priced <= stated * (1 + 1e-9):
        return None
    return Notice(
        "danger",
        "The stated guarantee does not hold",
        f"What this run released costs ε = {formatting.at_most(priced)} when it is recomputed, more than "
        f"the stated {formatting.at_most(stated)}. Do not sign; report this as a bug.",
    )


def _mask_notice(record: RunRecord) -> Notice | None:
    if record.secure_aggregation is None or not record.secure_aggregation.simulated:
        return None
    return Notice(
        "caution",
        "Masks are simulated",
        "In this run the noise was shared among the hospitals as secure aggregation requires, but no masks "
        "were exchanged: all sums were computed on one machine. The guarantee is the one that the real "
        "protocol would give; here it holds only against parties that see only the totals.",
    )


def _accuracy_notice(record: RunRecord) -> Notice | None:
    if record.test or record.released:
        return None
    return Notice(
        "caution",
        "Accuracy is unknown",
        "This study has no test images, and the hospitals released no evaluation: nothing on this page shows how "
        "accurate the model is. Evaluate it before use.",
    )


def _patient_notice(record: RunRecord) -> Notice | None:
    unit = record.guarantee.unit if record.guarantee else None
    if unit != "patient" or record.data is None or record.data.patients_known:
        return None
    return Notice(
        "caution",
        "Patients are not known",
        "The data names no patients, so each image was treated as a separate patient. A patient who has "
        "several images is protected less than this page says: with k images, epsilon is k times as large.",
    )


def _synthetic_notice(record: RunRecord) -> Notice | None:
    if record.data is None or not record.data.synthetic:
        return None
    return Notice(
        "information",
        "Synthetic images",
        "The images of this study were generated by a program. No patient data were used, and the accuracy "
        "says nothing about real images.",
    )
