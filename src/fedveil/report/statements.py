"""The hospitals' statements in a run directory, as the coordinator verified them.

`fedveil federation statements` checks each statement's signature, key and study, and writes ``statements.json``. A
report shows as valid only what was verified then and is still the same file.
"""

import hashlib
from pathlib import Path

from pydantic import Field

from fedveil.report.reading import read_json
from fedveil.schema import Cost, Count, Record

__all__ = ["StatementRecord", "Statements", "read_statements"]


class StatementRecord(Record):
    """One verified statement.

    Attributes:
        site: the hospital.
        file: the copy's name in ``statements/``; ``sha256`` of its content.
        signer: fingerprint of the key that signed it; ``former`` if the hospital has renewed that key since.
        made: when, in UTC.
        decision: the last act on the study.
        charges: lines of the hospital's ledger that charge this study, of ``epsilon`` together.
        spent, budget: epsilon of all charges of that ledger, and its limit, at ``delta``.
        line: number of its last line.
        early: whether the hospital answered requests of this study after it made the statement.
    """

    site: str
    file: str
    sha256: str
    signer: str
    former: bool
    made: str
    decision: str
    charges: Count
    epsilon: Cost
    spent: Cost
    budget: Cost
    delta: float
    line: Count
    early: bool


class _Unverified(Record):
    file: str
    reason: str


class Statements(Record):
    """``statements.json``: what was verified, and the files that could not be."""

    valid: tuple[StatementRecord, ...] = Field(default=(), strict=False)
    unverified: tuple[_Unverified, ...] = Field(default=(), strict=False)


def read_statements(run: Path) -> Statements | None:
    """The statements of a run; a copy that was changed since it was verified is not among the valid ones.

    Returns:
        None if none was taken in.
    """
    if not (run / "statements.json").exists():
        return None
    found = read_json(run / "statements.json", Statements)
    changed = [
        one for one in found.valid if not _is_same(run / "statements" / Path(one.file).name, one.sha256)
    ]
    reason = "the file is missing, or was changed after it was verified"
    return Statements(
        valid=tuple(one for one in found.valid if one not in changed),
        unverified=(*found.unverified, *(_Unverified(file=one.file, reason=reason) for one in changed)),
    )


def _is_same(path: Path, digest: str) -> bool:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except OSError:
        return False
