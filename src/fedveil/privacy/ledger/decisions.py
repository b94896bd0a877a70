"""What people decided about a site: on studies, on its budget, on patients who withdraw, on its identity key.

A decision names the person, their role and the reason. It is a line of the ledger, so every hash after it covers it,
and it is never removed: a later decision on the same subject replaces its effect only.
"""

import os
import pwd
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal, Self, get_args

from fedveil.errors import InvalidValue
from fedveil.privacy.ledger.chain import Entry

__all__ = ["Act", "Decision", "account", "decided_in", "decision_line"]

Act = Literal["approved", "declined", "withdrawn", "amended", "forgotten", "renewed"]
LONGEST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision of a person.

    Attributes:
        act: what was decided.
        subject: what it is about: the digest of a study, the new budget, the record of a patient's withdrawal, or the
            hand-over of a key.
        by: the person's name, as they gave it.
        role: in which role, such as "privacy officer".
        reason: why; only an approval may have none.
        account: the operating system's user who gave the command, which does not follow from the environment.
        told: whether the coordinator may learn of a refusal.
        time: in UTC.
    """

    act: Act
    subject: str
    by: str
    role: str
    reason: str = ""
    account: str = ""
    told: bool = True
    time: str = ""

    def __post_init__(self) -> None:
        if self.act not in get_args(Act) or type(self.told) is not bool:
            raise InvalidValue(
                f"a decision is {self.act!r}", f"it must be one of {', '.join(get_args(Act))}", "correct it"
            )
        reason = 0 if self.act == "approved" else 1
        for name, least in {
            "subject": 1,
            "by": 1,
            "role": 1,
            "reason": reason,
            "account": 0,
            "time": 0,
        }.items():
            text = getattr(self, name)
            if not (isinstance(text, str) and least <= len(text) <= LONGEST and text.isprintable()):
                raise InvalidValue(
                    f"{name} of the decision is {str(text)[:60]!r}",
                    f"it must be {least} to {LONGEST} characters on one line: a record names who decided, and why",
                    f"give --{name}",
                )

    def dated(self) -> "Decision":
        """The decision as made now, by the user who runs this program."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        return replace(self, time=self.time or now, account=self.account or account())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote; KeyError, TypeError or InvalidValue for anything else."""
        if set(values) != {item.name for item in fields(cls)}:
            raise KeyError("decision")
        return cls(**values)

    def __str__(self) -> str:
        reason = f": {self.reason}" if self.reason else ""
        return f"{self.act} by {self.by} ({self.role}, user {self.account}) at {self.time}{reason}"


def account() -> str:
    """The name of the user who runs this program; its number if the system has no name for it, as in a container.

    LOGNAME and USER are not read: whoever runs the command chooses them.
    """
    number = os.getuid()
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def decision_line(decision: Decision, source: str) -> dict[str, Any]:
    """The content of a ledger's line for a decision; ``source`` is the hash of the line that it was taken from."""
    return {"kind": "decision", "source": source, "decision": decision.to_dict()}


def decided_in(entries: Iterable[Entry]) -> tuple[Decision, ...]:
    """Every decision in a ledger's lines, amendments of the budget included."""
    found = []
    for entry in entries:
        if entry.body["kind"] == "decision" or (entry.body["kind"] == "budget" and "decision" in entry.body):
            found.append(Decision.from_dict(entry.body["decision"]))
    return tuple(found)
