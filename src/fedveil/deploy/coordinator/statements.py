"""The hospitals' signed statements on a finished study, taken into its run directory once they are verified.

A statement counts only if its signature is valid, its key is the one that this coordinator knows the hospital by, or
one that the hospital handed over to it, it is about this run's agreement, and no receipt of the hospital contradicts
the ledger that it quotes. An earlier key may have been stolen: what it signs counts only with a time before its
hand-over, and replaces no other statement.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fedveil.deploy.coordinator.hospitals import Federation
from fedveil.deploy.coordinator.progress import finished_run
from fedveil.deploy.identity import fingerprint
from fedveil.deploy.records.handover import in_utc
from fedveil.deploy.records.statement import Signed, Stated, verify_statement
from fedveil.errors import FedveilError, Refused, StudyError, printable
from fedveil.io import write_json, write_private

__all__ = ["take_in"]

_AHEAD = timedelta(days=1)
"""How far a hospital's clock may be ahead of this one."""


def take_in(federation: Federation, run: Path, files: Sequence[Path]) -> tuple[list[str], dict[str, str]]:
    """Verify statements, and store them with ``statements.json`` in a finished run's directory.

    A newer valid statement of a hospital replaces its older one, and one with its current key any with an earlier key;
    a statement with an earlier key, and a file that is not valid, replace nothing.

    Returns:
        the hospitals whose statements were taken in, and by file name why the others were not.

    Raises:
        StudyError: the folder holds no finished run.
    """
    digest, sites = finished_run(run, "statements belong to the run that they are about")
    valid, unverified = _before(run)
    taken, refused = [], {}
    for path in files:
        name = printable(path.name)
        try:
            values, content = _verified(federation, path, digest, sites)
        except FedveilError as error:
            refused[name] = str(error).replace(printable(str(path)), name)  # a report names no folders
            continue
        if _replaces(values, valid.get(values["site"]), federation):
            (run / "statements").mkdir(exist_ok=True)
            write_private(run / "statements" / values["file"], content)
            valid[values["site"]] = values
        unverified.pop(name, None)
        taken.append(values["site"])
    unverified |= refused
    write_json(
        run / "statements.json",
        {
            "valid": [valid[site] for site in sites if site in valid],
            "unverified": [{"file": name, "reason": why} for name, why in sorted(unverified.items())],
        },
    )
    return taken, refused


def _replaces(values: Mapping[str, Any], known: Mapping[str, Any] | None, federation: Federation) -> bool:
    """Whether a valid statement takes the place of the one that was taken in before."""
    if known is None:
        return True
    if values["former"]:
        return False
    current = fingerprint(federation.keys()[values["site"]])
    return bool(known["signer"] != current or known["made"] <= values["made"])


def _before(run: Path) -> tuple[dict[str, Any], dict[str, str]]:
    path = run / "statements.json"
    if not path.exists():
        return {}, {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return (
            {str(one["site"]): dict(one) for one in found["valid"]},
            {str(one["file"]): str(one["reason"]) for one in found["unverified"]},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{path} cannot be read ({error})",
            "it lists the statements that were taken in before",
            "delete it, and give all statements again",
        ) from None


def _verified(
    federation: Federation, path: Path, digest: str, sites: Sequence[str]
) -> tuple[dict[str, Any], bytes]:
    """What ``statements.json`` holds of a valid statement, and the file's content.

    Raises:
        FedveilError: it is not valid here.
    """
    signed = verify_statement(path)
    stated = signed.stated
    if stated.site not in sites or stated.study != digest:
        raise Refused(
            f"{path.name} is about study {stated.study[:12]} at {stated.site}",
            f"this run is study {digest[:12]} between {', '.join(sites)}",
            "ask the hospital for its statement on this study",
        )
    key = federation.keys().get(stated.site)
    if key is None:
        raise Refused(
            f"the key of {stated.site} is not known here",
            "a statement is valid with a key that was compared by telephone",
            "use the coordinator's folder that the study ran with",
        )
    verify_statement(path, key, federation.handed(stated.site))
    _check_time(federation, signed, key)
    early = _check_ledger(federation, stated)
    content = path.read_bytes()
    values = {
        "site": stated.site,
        "file": f"{stated.site}.html",
        "sha256": hashlib.sha256(content).hexdigest(),
        "signer": fingerprint(signed.signer),
        "former": signed.signer != key,
        "early": early,
    }
    shown = ("made", "decision", "charges", "epsilon", "spent", "budget", "delta", "line")
    return values | {name: getattr(stated, name) for name in shown}, content


def _check_time(federation: Federation, signed: Signed, key: str) -> None:
    """Refuse a statement of the future, and one that an earlier key signed after it was handed over."""
    stated = signed.stated
    made = in_utc(stated.made)
    if made > datetime.now(UTC) + _AHEAD:
        raise Refused(
            f"the statement of {stated.site} was made at {stated.made}",
            "that time has not come",
            "have the hospital correct its clock, and make the statement again",
        )
    if signed.signer == key:
        return
    over = next(one for one in federation.handed(stated.site) if one.old == signed.signer)
    if made > in_utc(over.time):
        raise Refused(
            f"the statement of {stated.site} was made at {stated.made} with a key that it handed over at {over.time}",
            "who has stolen an earlier key can sign with it",
            "have the hospital make the statement again, with its current key",
        )


def _check_ledger(federation: Federation, stated: Stated) -> bool:
    """Whether the hospital answered for the study after the statement.

    Raises:
        Refused: a receipt names another line in the place of the ledger's last one, or receipts show more charges.
    """
    receipts = federation.receipts()
    known = receipts.line(stated.site, stated.line)
    if known is not None and known != stated.hash:
        raise Refused(
            f"the statement of {stated.site} quotes line {stated.line} of its ledger as {stated.hash[:12]}",
            f"its receipt for that line says {known[:12]}",
            "ask the hospital which ledger it made the statement from",
        )
    least = receipts.charged(stated.site, stated.study, stated.line)
    if stated.charges < least:
        raise Refused(
            f"the statement of {stated.site} counts {stated.charges} charges up to line {stated.line} of its ledger",
            f"its receipts show {least} or more, one for each charged answer",
            "ask the hospital which ledger it made the statement from",
        )
    last = receipts.last(stated.site)
    return last is not None and last.study == stated.study and last.seq > stated.line
