"""Checks before a person approves a study: its model, the images here, the other hospitals' keys."""

import re
from collections.abc import Mapping, Sequence

from fedveil.data import check
from fedveil.deploy.identity import fingerprint
from fedveil.deploy.site.approvals import Listed
from fedveil.deploy.site.runtime import Cohorts
from fedveil.errors import DataError, InvalidValue, Refused

__all__ = ["image_problems", "match_keys"]

_DIGITS = re.compile(r"[0-9a-f]+")


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
            image_size=offer.study.data.image_size,
            positive=offer.study.data.positive or None,
            classes=offer.classes,
            base=cohorts.config.folder,
            allow_patient_overlap=data.allow_patient_overlap,
        )
        found = [str(problem) for problem in report.problems]
    except DataError as error:
        found = [str(error)]
    try:
        cohorts.check(offer)
    except DataError as error:
        found = found or [str(error)]
    return found


def match_keys(new: Mapping[str, str], said: Sequence[str]) -> dict[str, str]:
    """The unconfirmed keys, without those whose fingerprint a person supplies as read by the owner.

    Args:
        new: unconfirmed public keys by hospital.
        said: complete ``NAME=FINGERPRINT`` pairs; separators between the digits are ignored.

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
        expected = fingerprint(new[hospital])
        if digits != expected.replace("-", ""):
            raise Refused(
                f"the coordinator gives {hospital} the key {expected}",
                f"{read} was read by {hospital}",
                "ask both again; if the keys differ, somebody intercepts the messages",
            )
        left.pop(hospital, None)
    return left
