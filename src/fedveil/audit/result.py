"""What ``audit.json`` holds: written and read by these types; ``schema`` is the version of its layout."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationError

from fedveil.errors import StudyError
from fedveil.federation.queries import title_of
from fedveil.io import write_json
from fedveil.schema import Cost, Count, Number, Record, explain

__all__ = ["FILE", "SCHEMA", "AuditResult", "Finding", "read_audit", "write_audit"]

SCHEMA = 1
FILE = "audit.json"


def _points(value: Any) -> Any:
    return tuple(tuple(map(float, pair)) for pair in value) if isinstance(value, list | tuple) else value


def _texts(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Curve = Annotated[tuple[tuple[float, float], ...], BeforeValidator(_points)]


class Finding(Record):
    """What one attack proved.

    Attributes:
        attacker: which.
        release: name of the release, or "study" for all of them.
        what: the attack in words.
        epsilon: stated for what was attacked, at the study's delta; infinite if nothing is stated.
        lower: lower bound on epsilon from the whole trade-off function: the noise is at most that of a mechanism of the
            stated kind with this epsilon.
        lower_plain: lower bound on epsilon from epsilon and delta alone, with no assumption about the mechanism.
        contradicted: whether the statement is excluded at the confidence of the whole audit.
        executions: how often the code was run.
        false_positive_rate, true_positive_rate: of the judged guesses.
        curve: measured (false, true) positive rates at all thresholds; these points are not a test.
        area: under the measured curve; 0.5 is chance.
        covered: which of the stated rounds were attacked, in words; empty for all.
    """

    attacker: str
    release: str
    what: str
    epsilon: Cost
    lower: Number
    lower_plain: Number
    contradicted: bool
    executions: Count
    false_positive_rate: Number
    true_positive_rate: Number
    curve: Curve
    area: Number
    covered: str = ""

    @property
    def subject(self) -> str:
        """What was attacked, in words."""
        if self.attacker == "protocol":
            return f"{title_of(self.release)}, one round"
        if self.release != "study":
            return title_of(self.release) + (f" ({self.covered})" if self.covered else "")
        return f"the study, but only {self.covered}" if self.covered else "the whole study"

    @property
    def proved(self) -> tuple[str, str]:
        """Both lower bounds in words: that epsilon is at least 0 needs no proof."""
        strong, plain = (f">= {one:.3f}" if one > 0 else "nothing" for one in (self.lower, self.lower_plain))
        return strong, plain

    @property
    def ratio(self) -> float:
        """The lower bound as a fraction of what is stated."""
        return self.lower / self.epsilon


class AuditResult(Record):
    """A finished audit.

    Attributes:
        schema_version: of the layout.
        study: its name.
        digest: of the agreement that was attacked.
        data: the patients, in words.
        unit, trust: of the guarantee.
        epsilon, delta: of the guarantee; epsilon is infinite without privacy.
        confidence: with which all lower bounds hold together, and so the largest of them.
        findings: one per attack.
        allowed: (false, most true) positive rates that the study's whole trade-off function allows.
        verdict: in words.
        notes: what a reader has to know.
        seconds: of the audit.
        version: of fedveil.
    """

    schema_version: int = SCHEMA
    study: str
    digest: str
    data: str
    unit: str
    trust: str
    epsilon: Cost
    delta: Number
    confidence: Number
    findings: Annotated[tuple[Finding, ...], BeforeValidator(_texts)]
    allowed: Curve
    verdict: str
    notes: Annotated[tuple[str, ...], BeforeValidator(_texts)] = ()
    seconds: Number = math.nan
    version: str = ""

    @property
    def contradicted(self) -> tuple[Finding, ...]:
        """The findings that exclude what is stated."""
        return tuple(one for one in self.findings if one.contradicted)

    @property
    def lower(self) -> float:
        """The largest lower bound on the whole study's epsilon; 0 if there is none."""
        return max((one.lower for one in self.findings if one.release == "study"), default=0.0)


def write_audit(folder: Path, result: AuditResult) -> Path:
    """Write ``audit.json`` into a folder."""
    write_json(folder / FILE, result.model_dump())
    return folder / FILE


def read_audit(folder: Path) -> AuditResult | None:
    """The audit of a run directory; None if there was none.

    Raises:
        StudyError: the file is damaged, or was written by a newer version.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and int(values.get("schema_version", 0)) > SCHEMA:
            raise StudyError(
                f"{path} has layout {values['schema_version']}",
                f"this version reads layouts up to {SCHEMA}",
                "install a newer fedveil",
            )
        return AuditResult.model_validate(values)
    except ValidationError as error:
        raise explain(error, str(path), StudyError, "run the audit again", AuditResult) from None
    except (OSError, ValueError, TypeError) as error:
        raise StudyError(
            f"{path} cannot be read ({error})", "it must be JSON as an audit writes it", "run the audit again"
        ) from None
