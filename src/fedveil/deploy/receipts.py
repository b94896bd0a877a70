"""Receipts: each answer quotes the newest line of the site's ledger, signed by the site; the coordinator stores them.

A ledger is a hash chain, so one quoted line covers all lines before it. A hospital that restores an old copy of its
ledger, by mistake or not, would lose charges. This is detected twice: the coordinator sends the last receipt with
its greeting and the site looks for that line in its own ledger; and a new receipt that does not come after the last
one is invalid, so its answer is left out.

The hospital signs each receipt by itself, apart from the message that carries it: so a stored receipt is proof to a
third party, who needs the hospital's public key and nothing of the coordinator's."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from fedveil.deploy.identity import Identity, fingerprint, signing_key
from fedveil.errors import FederationError, FedveilError
from fedveil.federation import Agreement, Reply
from fedveil.federation.wire import pack
from fedveil.names import SITE_NAME
from fedveil.privacy import Head, Mechanism

__all__ = ["Receipt", "Receipts"]

_PURPOSE = b"fedveil receipt 1\0"

_HASH = re.compile("[0-9a-f]{64}")
_TEXT = {
    "site": re.compile(SITE_NAME),  # the file of its receipts has its name
    "release": re.compile("[a-z0-9-]{1,64}"),
    "study": _HASH,
    "answer": _HASH,
    "hash": _HASH,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A site's statement with an answer.

    Attributes:
        site, study, release, round, attempt: identify the answer.
        answer: SHA-256 of the answer's bytes.
        cost: what was charged for it: the mechanism as the ledger holds it; None without privacy.
        seq: number of the newest ledger line after the answer was charged.
        hash: hash of that line.
    """

    site: str
    study: str
    release: str
    round: int
    attempt: int
    answer: str
    cost: Mapping[str, Any] | None
    seq: int
    hash: str

    @classmethod
    def of(cls, reply: Reply, agreement: Agreement, head: Head) -> "Receipt":
        """The receipt for an answer that was charged to the ledger with this head."""
        release = agreement.release(reply.release)
        cost = release.mechanism.with_steps(release.steps_per_round)
        return cls(
            site=reply.site,
            study=reply.study,
            release=reply.release,
            round=reply.round,
            attempt=reply.attempt,
            answer=hashlib.sha256(pack(reply)).hexdigest(),
            cost=None if agreement.trust == "none" else cost.to_dict(),
            seq=head.seq,
            hash=head.hash,
        )

    @property
    def signed_bytes(self) -> bytes:
        """The bytes that the site signs: its purpose, then the receipt in canonical JSON."""
        return _PURPOSE + json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()

    def signed(self, identity: Identity) -> str:
        """The site's signature (Ed25519), in hexadecimal digits."""
        return identity.key.sign(self.signed_bytes).hex()

    def check(self, signature: object, signer: str) -> str:
        """The signature, if the owner of this public key made it for this receipt.

        Raises:
            FederationError: somebody else made it, or for something else.
        """
        try:
            raw = bytes.fromhex(str(signature))
            Ed25519PublicKey.from_public_bytes(signing_key(signer)).verify(raw, self.signed_bytes)
        except (ValueError, InvalidSignature):
            raise FederationError(
                f"the receipt of {self.site} for round {self.round} is not signed by {fingerprint(signer)}",
                "a receipt is evidence only with the hospital's signature",
                "compare the hospital's fingerprint by telephone",
            ) from None
        return raw.hex()

    def is_signed(self, signature: object, signer: str) -> bool:
        """Whether the owner of this public key made the signature for this receipt."""
        try:
            self.check(signature, signer)
        except FederationError:
            return False
        return True

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: object) -> "Receipt":
        """Read what `to_dict` wrote, validating everything."""
        if (
            not isinstance(values, dict)
            or values.keys() != {item.name for item in fields(cls)}
            or not all(_is(pattern, values[name]) for name, pattern in _TEXT.items())
            or not all(_is_count(values[name]) for name in ("round", "attempt", "seq"))
            or not (values["cost"] is None or _is_cost(values["cost"]))
        ):
            raise FederationError(
                f"{str(values)[:60]!r} is not a receipt",
                "an answer must quote the site's ledger",
                "install the same fedveil version at the coordinator and at every site",
            )
        return cls(**values)


def _is(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_cost(value: object) -> bool:
    """Whether a site's stated charge is a mechanism as ledgers hold it."""
    if not isinstance(value, dict):
        return False
    try:
        return dict(Mechanism.from_dict(value).to_dict()) == value
    except (FedveilError, TypeError, ValueError, KeyError, OverflowError):
        return False


class Receipts:
    """A coordinator's stored receipts: one file per site, one signed line per receipt, never rewritten.

    Several coordinators of one folder may store receipts at the same time: a file is locked while it is extended, and
    what others added is read first.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._known: dict[str, _Known] = {}

    def last(self, site: str) -> Receipt | None:
        """The receipt of a site's newest ledger line that any coordinator of this folder has."""
        return self._read(site).last

    def line(self, site: str, seq: int) -> str | None:
        """The hash of a line of a site's ledger, if a receipt quotes that line."""
        return self._read(site).lines.get(seq)

    def charged(self, site: str, study: str, line: int) -> int:
        """How many lines of a site's ledger, up to this one, receipts for charged answers of a study quote."""
        return sum(seq <= line for seq in self._read(site).charged.get(study, ()))

    def _read(self, site: str) -> "_Known":
        path = self._folder / f"{site}.jsonl"
        known = self._known.setdefault(site, _Known())
        if path.exists():
            with path.open("rb") as file:
                known.read_on(file)
        return known

    def verify(self, site: str, *signers: str) -> tuple[int, int]:
        """Check every stored receipt of a site; return how many it signed, and how many version 0.1 left unsigned.

        Args:
            site: its name.
            signers: its public keys, the current one first. A receipt that lies behind one of a later key cannot be of
                an earlier key: who stole that one can add nothing.

        Raises:
            FederationError: a signature is not the site's.
        """
        path = self._folder / f"{site}.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        found = [stored for line in lines if (stored := _stored(line)) is not None]
        signed = [(receipt, signature) for receipt, signature in found if signature is not None]
        left = list(signers)
        for receipt, signature in signed:
            while len(left) > 1 and not receipt.is_signed(signature, left[-1]):
                left.pop()
            receipt.check(signature, left[-1])
        return len(signed), len(found) - len(signed)

    def keep(self, receipt: Receipt, signature: str, *, after: Receipt | None) -> None:
        """Store a receipt durably, with the site's signature, which was checked before.

        The answer to another coordinator's request may be charged before this one and arrive behind it, so what a
        receipt must follow is the newest one of the time when its own request was made.

        Args:
            receipt: a site's receipt for an answer.
            signature: the site's.
            after: the site's last receipt when the answer was asked for.

        Raises:
            FederationError: the site's ledger was rolled back behind that receipt, or had another line in this place.
        """
        path = self._folder / f"{receipt.site}.jsonl"
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = self._known.setdefault(receipt.site, _Known())
            torn = known.read_on(file)
            if receipt.signed_bytes in known.receipts:
                return
            if (after is not None and not _follows(receipt, after)) or (
                known.lines.get(receipt.seq, receipt.hash) != receipt.hash
            ):
                seq = receipt.seq if after is None else after.seq
                raise FederationError(
                    f"{receipt.site}'s ledger is at line {receipt.seq}, and was at line {seq} before",
                    "a ledger may only grow",
                    "have the hospital find out what happened to its ledger before it takes part again",
                )
            values = {"receipt": receipt.to_dict(), "signature": signature}
            file.write(("\n" * torn + json.dumps(values, sort_keys=True) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
            known.read_on(file)


@dataclass(slots=True)
class _Known:
    """What this process has read of a site's file."""

    read: int = 0
    last: Receipt | None = None
    receipts: set[bytes] = field(default_factory=set)
    lines: dict[int, str] = field(default_factory=dict)
    charged: dict[str, set[int]] = field(default_factory=dict)

    def read_on(self, file: BinaryIO) -> bool:
        """Read what was added to the file; True if it ends in an incomplete line."""
        file.seek(self.read)
        added = file.read()
        whole = added.rfind(b"\n") + 1
        self.read += whole
        for line in added[:whole].decode("utf-8", errors="replace").splitlines():
            if (stored := _stored(line)) is None:
                continue
            receipt = stored[0]
            self.receipts.add(receipt.signed_bytes)
            self.lines[receipt.seq] = receipt.hash
            if receipt.cost is not None:
                self.charged.setdefault(receipt.study, set()).add(receipt.seq)
            if self.last is None or receipt.seq >= self.last.seq:
                self.last = receipt
        return whole < len(added)


def _stored(line: str) -> tuple[Receipt, str | None] | None:
    """A stored receipt and its signature, which version 0.1 did not store.

    None for an incomplete last line: its answer was never used.
    """
    try:
        values = json.loads(line)
        if isinstance(values, dict) and values.keys() == {"receipt", "signature"}:
            return Receipt.from_dict(values["receipt"]), str(values["signature"])
        return Receipt.from_dict(values), None
    except (ValueError, FederationError):
        return None


def _follows(receipt: Receipt, last: Receipt) -> bool:
    """A charged answer's line comes after the last one; without privacy nothing is charged, and the line is
    unchanged."""
    if receipt.seq == last.seq:
        return receipt.cost is None and receipt.hash == last.hash
    return receipt.seq > last.seq
