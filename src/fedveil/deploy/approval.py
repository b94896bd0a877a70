"""What a person at a hospital decides about a study, and the checks before it: one place for terminal and page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedveil.data import check
from fedveil.deploy.identity import Identity, fingerprint, private_files
from fedveil.deploy.records.handover import HandOver
from fedveil.deploy.site.approvals import Listed, Studies
from fedveil.deploy.site.config import SiteConfig
from fedveil.deploy.site.keys import Peers
from fedveil.deploy.site.models import Models
from fedveil.deploy.site.review import Review
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import DataError, InvalidValue, Refused
from fedveil.privacy import Decision

__all__ = [
    "Checked",
    "approve",
    "check_approval",
    "check_hand_over",
    "confirm_key",
    "decline",
    "image_problems",
    "is_confirmed",
    "match_keys",
    "record",
    "withdraw",
]

_DIGITS = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A study that may be approved once the remaining keys are confirmed.

    Attributes:
        study: as reviewed.
        problems: the images here that it cannot use.
        new: public keys of other hospitals that nobody here has confirmed, by hospital.
    """

    study: Listed
    problems: tuple[str, ...]
    new: Mapping[str, str]


def check_approval(config: SiteConfig, found: Review, *, leave_out: bool = False) -> Checked:
    """Everything that has to hold before a person may approve a study. Every image is decoded.

    Raises:
        Refused: policy, budget or a changed key of a hospital forbids it.
        DataError: images cannot be used, and ``leave_out`` does not accept that.
    """
    listed = found.listed
    if found.objection:
        raise Refused(
            f"{listed.agreement.name} is outside this site's policy or budget ({found.objection})",
            "what the policy forbids cannot be approved",
            "change site.toml or the study",
        )
    new: Mapping[str, str] = {}
    if listed.agreement.trust == "secure-aggregation":
        peers = Peers(config.folder / "peers")
        new = peers.unconfirmed(listed.agreement.sites, listed.offer.keys, config.site.name)
    problems = image_problems(Cohorts(config, Identity.load(config.folder / "identity.key")), listed)
    if problems and not leave_out:
        shown = "; ".join(problems[:3]) + ("; ..." if len(problems) > 3 else "")
        raise DataError(
            f"{config.data.source} has {len(problems)} problems for {listed.agreement.name} ({shown})",
            "what cannot be used is left out silently once a study is approved",
            "correct what is named above, or approve without it: --leave-out",
        )
    return Checked(study=listed, problems=tuple(problems), new=new)


def approve(config: SiteConfig, checked: Checked, *, by: str, role: str, reason: str = "") -> Decision:
    """Record an approval, and the other hospitals' keys that were confirmed for it."""
    decision = Decision(act="approved", subject=checked.study.digest, by=by, role=role, reason=reason)
    with private_files():
        Peers(config.folder / "peers").confirm(checked.new)
        return _studies(config.folder).decide(decision)


def decline(config: SiteConfig, digest: str, *, by: str, role: str, reason: str, told: bool) -> Decision:
    """Record that a study is declined; the coordinator learns only that, and only if ``told``.

    Raises:
        Refused: the study was not offered.
    """
    if not _studies(config.folder).is_known(digest):
        raise Refused(
            f"study {digest[:12]} was not offered here",
            "only a study on offer can be declined",
            "see `fedveil site studies`",
        )
    return _decide(
        config, Decision(act="declined", subject=digest, by=by, role=role, reason=reason, told=told)
    )


def withdraw(config: SiteConfig, digest: str, *, by: str, role: str, reason: str) -> Decision:
    """Record that an approval no longer holds; what was released stays charged, and the approval stays on record.

    Raises:
        Refused: no approval is in force.
    """
    if not _studies(config.folder).is_approved(digest):
        raise Refused(
            f"study {digest[:12]} is not approved",
            "only an approval that is in force can be withdrawn",
            "see `fedveil site studies`; a study on offer is declined",
        )
    return _decide(config, Decision(act="withdrawn", subject=digest, by=by, role=role, reason=reason))


def record(config: SiteConfig, decision: Decision, *, subject: str) -> Decision:
    """Record another decision of a person, about this subject."""
    return _decide(config, replace(decision, subject=subject))


def _decide(config: SiteConfig, decision: Decision) -> Decision:
    with private_files():
        return _studies(config.folder).decide(decision)


def _studies(folder: Path) -> Studies:
    return Studies(folder / "studies")


def image_problems(cohorts: Cohorts, listed: Listed) -> list[str]:
    """All problems with a study's use of the images here. Every image is decoded, and the model is built once.

    After the approval an unusable image is left out silently. So a person is told now.

    Raises:
        InvalidValue: the model cannot be built here, for example because its public weights are missing.
    """
    offer, data = listed.offer, cohorts.config.data
    try:
        report = check(
            data.source,
            base=cohorts.config.folder,
            **cohorts.settings(offer),
        )
        found = [str(problem) for problem in report.problems]
    except DataError as error:
        found = [str(error)]
    try:
        cohorts.check(offer)
    except DataError as error:
        found = found or [str(error)]
    return found


def confirm_key(config: SiteConfig, one: HandOver) -> None:
    """Use a hospital's new key, which was compared with its owner.

    Undecided offers that name the old one are deleted: the coordinator offers them again.
    """
    check_hand_over(config, one)
    with private_files():
        Peers(config.folder / "peers").accept(one)
    is_confirmed(config, one)


def is_confirmed(config: SiteConfig, one: HandOver) -> bool:
    """Whether a hospital's new key is used; what an interrupted confirmation left of the old one is deleted then."""
    if Peers(config.folder / "peers").known().get(one.site) != one.new:
        return False
    _studies(config.folder).drop_undecided(lambda offer: offer.keys.get(one.site) == one.old)
    return True


def check_hand_over(config: SiteConfig, one: HandOver) -> None:
    """Everything that has to hold before a person compares a hospital's new key.

    Raises:
        Refused: it does not follow from the confirmed key, or a study under secure aggregation still needs that one.
    """
    if one.site == config.site.name:
        raise Refused(
            "the hand-over is this site's own",
            "the coordinator and the other hospitals need it",
            "send them the file",
        )
    Peers(config.folder / "peers").check(one)
    models = Models(config.folder / "models")
    for listed in _studies(config.folder).all():
        agreement = listed.agreement
        if (
            listed.state == "approved"
            and agreement.trust == "secure-aggregation"
            and one.site in agreement.sites
            and not models.of(listed.digest).exists()
        ):
            raise Refused(
                f"study {agreement.name} ({listed.digest[:12]}) with {one.site} is approved and not finished",
                "its sums are masked with the keys that it began with",
                "wait for its end, or end it here with `fedveil site withdraw`",
            )


def match_keys(
    new: Mapping[str, str], said: Sequence[str], given: str = "the one that the coordinator gives"
) -> dict[str, str]:
    """The unconfirmed keys, without those whose fingerprint a person supplies as read by the owner.

    Args:
        new: unconfirmed public keys by hospital.
        said: complete ``NAME=FINGERPRINT`` pairs; separators between the digits are ignored.
        given: where the unconfirmed keys come from, in words.

    Raises:
        InvalidValue: the text has another form, or names a hospital that needs no confirmation.
        Refused: the coordinator's key for a hospital is not the one that the hospital read out.
    """
    left = dict(new)
    for text in said:
        hospital, _, read = text.partition("=")
        digits = re.sub(r"[\s:-]", "", read.lower())
        if hospital not in new or not _DIGITS.fullmatch(digits):
            raise InvalidValue(
                f"--key is {text[:120]!r}",
                f"it must be NAME=FINGERPRINT, of one of {', '.join(new) or 'no hospital: all keys are confirmed'}",
                "write for example --key north=0123-4567-89ab-cdef-0123-4567-89ab-cdef",
            )
        if digits != fingerprint(new[hospital]).replace("-", ""):
            raise Refused(  # without the expected digits: whoever sees them can type them
                f"the fingerprint of {hospital} is not {given}",
                "all 32 digits must match what the hospital reads out",
                "ask both again; if the keys differ, somebody intercepts the messages",
            )
        left.pop(hospital, None)
    return left
