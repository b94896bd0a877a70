"""Who speaks: Ed25519 identities, and messages sealed with them.

Flower authenticates the machines and encrypts the line; the seal makes what travels independent of both. A
site acts only on what its coordinator has signed, a coordinator believes only what the site itself has
signed, and whoever owns the SuperLink, the network or a node's key in between can drop messages but neither
write nor alter one."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.errors import FederationError, InvalidValue

__all__ = [
    "FROM_COORDINATOR",
    "FROM_SITE",
    "Identity",
    "check_private",
    "check_public_key",
    "fingerprint",
    "private_files",
    "unseal",
    "write_private",
]

FROM_COORDINATOR = b"fedveil coordinator to site 1"
FROM_SITE = b"fedveil site to coordinator 1"

_MAGIC = b"FVSG"
_HEAD = len(_MAGIC) + 32 + 64


@dataclass(frozen=True, slots=True)
class Identity:
    """A private signing key. Its public half, 64 hexadecimal digits, is how others know its owner."""

    key: Ed25519PrivateKey

    @classmethod
    def create(cls, path: Path) -> "Identity":
        """Make a new key and store it, readable by its owner only; refuses to replace one."""
        key = Ed25519PrivateKey.generate()
        write_private(path, key.private_bytes_raw().hex().encode() + b"\n")
        identity = cls(key)
        path.with_suffix(".pub").write_text(identity.public + "\n")
        return identity

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a stored key; refuses one that other users of the machine can read."""
        check_private(path)
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip())))
        except (ValueError, UnicodeDecodeError):
            raise InvalidValue(
                f"{path} holds no identity key",
                "it must be 64 hexadecimal digits",
                "restore it from a back-up, or set the site up anew",
            ) from None

    @property
    def public(self) -> str:
        """The public key as 64 hexadecimal digits."""
        return self.key.public_key().public_bytes_raw().hex()

    def secret(self, purpose: bytes) -> bytes:
        """32 bytes for one purpose that only this key's owner can work out, by HKDF-SHA256 (RFC 5869)."""
        return HKDF(SHA256(), 32, salt=None, info=purpose).derive(self.key.private_bytes_raw())

    def seal(self, body: bytes, purpose: bytes) -> bytes:
        """The body with this identity's public key and signature before it."""
        return (
            _MAGIC + self.key.public_key().public_bytes_raw() + self.key.sign(purpose + b"\0" + body) + body
        )


def unseal(data: bytes, *, signer: str | None, purpose: bytes) -> tuple[bytes, str]:
    """Check a sealed message; return its body and its signer's public key.

    Args:
        data: what `Identity.seal` made.
        signer: the only public key that is accepted; None accepts any, for a first contact.
        purpose: direction of the message; one sealed for another purpose is refused.

    Raises:
        FederationError: it was altered, is another's, or is no sealed message.
    """
    if len(data) < _HEAD or data[:4] != _MAGIC:
        raise FederationError(
            f"{len(data)} bytes arrived that are no sealed message",
            "every message must be signed by its sender",
            "check that the peer runs the same fedveil version",
        )
    public, signature, body = data[4:36], data[36:_HEAD], bytes(data[_HEAD:])
    if signer is not None and public.hex() != signer:
        raise FederationError(
            f"a message signed by {fingerprint(public.hex())} arrived",
            f"only {fingerprint(signer)} is trusted here",
            "compare the fingerprints by telephone, and replace the key only if its owner confirms",
        )
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, purpose + b"\0" + body)
    except InvalidSignature:
        raise FederationError(
            f"a message in the name of {fingerprint(public.hex())} has a wrong signature",
            "what was signed must arrive unchanged",
            "look for someone who alters messages between the parties",
        ) from None
    return body, public.hex()


def fingerprint(public: str) -> str:
    """The first 32 digits of a public key (128 bits) in groups, to compare by telephone.

    >>> fingerprint("0123456789abcdef" * 4)
    '0123-4567-89ab-cdef-0123-4567-89ab-cdef'
    """
    return "-".join(public[start : start + 4] for start in range(0, 32, 4))


def check_public_key(text: str) -> str:
    """The public key if it is one; `InvalidValue` otherwise."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(text.strip()))
    except ValueError:
        raise InvalidValue(
            f"{text[:80]!r} is no public key",
            "it must be 64 hexadecimal digits",
            "copy the .pub file's line whole",
        ) from None
    return text.strip().lower()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can read, from its first byte on; refuses to replace one."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise InvalidValue(
            f"{path} exists", "a key is never replaced", "delete it yourself if it is no longer needed"
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def private_files() -> Iterator[None]:
    """Whatever files this process makes inside are for its user only, whoever may enter their folder."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def check_private(path: Path) -> None:
    """Refuse a secret that is missing, or that other users of the machine can read or write."""
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidValue(
            f"{path} cannot be read ({error.strerror})",
            "the key that belongs there is needed",
            "put the start-up kit's file there, or run the init command again",
        ) from None
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise InvalidValue(
            f"{path} can be read by other users of this machine",
            "a secret belongs to one user",
            f"run chmod 600 {path}, and consider the key as known to them",
        )
