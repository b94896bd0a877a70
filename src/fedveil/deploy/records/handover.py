"""Hand-overs: how a party's new identity key follows from its old one, for everybody who knew the old one.

A hand-over is one small public file, signed with both keys. It proves that whoever held the old key named the new one,
and so that receipts and statements of either are the same party's. It does not prove who that was: an old key may have
been stolen. So a new key is used only once its fingerprint was compared by telephone, as the first one was.
"""

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedveil.deploy.identity import Identity, check_public_key, fingerprint, signing_key
from fedveil.errors import FedveilError, InvalidValue, Refused
from fedveil.io import write_atomic
from fedveil.names import SITE_NAME

__all__ = [
    "HandOver",
    "check_follows",
    "former_keys",
    "in_utc",
    "keep_hand_over",
    "kept_hand_overs",
    "read_hand_over",
]

_PURPOSE = b"fedveil key hand-over 1\0"
_LONGEST = 4096
_FORMS = {
    "site": re.compile(SITE_NAME),
    "old": re.compile("[0-9a-f]{128}"),
    "new": re.compile("[0-9a-f]{128}"),
    "time": re.compile(r"[0-9T:.+-]{19,40}"),
    "by_old": re.compile("[0-9a-f]{128}"),
    "by_new": re.compile("[0-9a-f]{128}"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOver:
    """A signed statement that one key follows another.

    Attributes:
        site: the party's name.
        old, new: its public keys.
        time: when it was made, in UTC.
        by_old, by_new: the signatures (Ed25519) of both keys on all of the above, in hexadecimal digits.
    """

    site: str
    old: str
    new: str
    time: str
    by_old: str = ""
    by_new: str = ""

    @classmethod
    def make(cls, site: str, old: Identity, new: Identity) -> Self:
        """Sign a hand-over with both keys."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        plain = cls(site=site, old=old.public, new=new.public, time=now)
        signed = (one.key.sign(plain.signed_bytes).hex() for one in (old, new))
        return cls(
            site=site, old=old.public, new=new.public, time=now, by_old=next(signed), by_new=next(signed)
        )

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that both keys sign: the purpose, then everything but the signatures in canonical JSON."""
        values = {name: getattr(self, name) for name in ("site", "old", "new", "time")}
        return _PURPOSE + json.dumps(values, sort_keys=True, separators=(",", ":")).encode()

    @property
    def subject(self) -> str:
        """What a decision about it names: both fingerprints, and the SHA-256 of what was signed."""
        digest = hashlib.sha256(self.signed_bytes).hexdigest()
        return f"{fingerprint(self.old)} to {fingerprint(self.new)}, hand-over {digest}"

    def to_dict(self) -> dict[str, str]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read what `to_dict` wrote, and check both signatures; ValueError for anything else."""
        if (
            not isinstance(values, dict)
            or values.keys() != {item.name for item in fields(cls)}
            or not all(
                isinstance(values[name], str) and form.fullmatch(values[name])
                for name, form in _FORMS.items()
            )
        ):
            raise ValueError("it has another form")
        made = cls(**values)
        in_utc(made.time)
        try:
            for key, signature in ((made.old, made.by_old), (made.new, made.by_new)):
                verify = Ed25519PublicKey.from_public_bytes(signing_key(check_public_key(key))).verify
                verify(bytes.fromhex(signature), made.signed_bytes)
        except (InvalidSignature, FedveilError):
            raise ValueError("a signature in it is wrong") from None
        return made


def in_utc(text: str) -> datetime:
    """An ISO 8601 time that names its distance from UTC, as UTC.

    Raises:
        ValueError: it is none.
    """
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is None:
            raise ValueError("no distance from UTC")
        return when.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is no date and time with its distance from UTC") from None


def read_hand_over(path: Path) -> HandOver:
    """The hand-over in a file that somebody sent.

    Raises:
        InvalidValue: the file cannot be read, or holds no hand-over that both keys signed.
    """
    try:
        with path.open("rb") as file:
            return HandOver.from_dict(json.loads(file.read(_LONGEST)))
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{path} holds no hand-over of a key ({getattr(error, 'strerror', None) or error})",
            "it must be a file that `fedveil site renew` wrote, signed with the old key and the new one",
            "ask the hospital for the original file",
        ) from None


def kept_hand_overs(path: Path) -> tuple[HandOver, ...]:
    """The hand-overs in a file of lines, oldest first; none if there is no file.

    Raises:
        InvalidValue: the file is damaged.
    """
    try:
        return tuple(HandOver.from_dict(json.loads(line)) for line in path.read_text("utf-8").splitlines())
    except FileNotFoundError:
        return ()
    except (OSError, ValueError) as error:
        raise InvalidValue(
            f"{path} cannot be read ({error})",
            "it shows which keys belonged to one party",
            "restore it from a backup",
        ) from None


def keep_hand_over(path: Path, one: HandOver) -> None:
    """Add a hand-over to a file of lines, once; the file is replaced as a whole."""
    kept = kept_hand_overs(path)
    if one in kept:
        return
    text = "".join(json.dumps(each.to_dict(), sort_keys=True) + "\n" for each in (*kept, one))
    write_atomic(path, lambda file: file.write(text.encode()))


def former_keys(path: Path, current: str) -> tuple[str, ...]:
    """The public keys that a party had before its current one, the newest first."""
    keys = [current]
    for one in reversed(kept_hand_overs(path)):
        if one.new == keys[-1]:
            keys.append(one.old)
    return tuple(keys[1:])


def check_follows(one: HandOver, known: str | None, where: Path) -> None:
    """Refuse a hand-over from another key than the known one.

    Raises:
        Refused: with what to do.
    """
    if known is not None and known != one.old:
        raise Refused(
            f"the hand-over is from {fingerprint(one.old)}, and {one.site} is known by {fingerprint(known)}",
            "a new key must follow from the one that was compared by telephone",
            f"ask {one.site} for its earlier hand-overs; if it has lost that key, delete {where} and compare anew",
        )
