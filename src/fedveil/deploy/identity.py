"""The identity of a party: one secret, and the two public keys derived from it.

One key is for signatures (Ed25519), the other for encryption (X25519). Both are derived from the 32 bytes in
``identity.key`` and together identify their owner: a public key is the 64 bytes of both, and a fingerprint covers
all of them."""

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil import io
from fedveil.errors import InvalidValue

__all__ = [
    "PUBLIC_BYTES",
    "Identity",
    "check_private",
    "check_public_key",
    "encryption_key",
    "fingerprint",
    "private_files",
    "signing_key",
    "write_private",
]

PUBLIC_BYTES = 64
"""Length of a public key: 32 bytes for Ed25519, 32 for X25519."""

_ENCRYPTION = b"fedveil encryption key 1"


@dataclass(frozen=True, slots=True)
class Identity:
    """A party's secret. Its public key, 128 hexadecimal digits, identifies it to others.

    Attributes:
        key: the private key that signs (Ed25519); everything else of an identity is derived from it.
    """

    key: Ed25519PrivateKey

    @classmethod
    def create(cls, path: Path) -> "Identity":
        """Make a new key and store it, readable by its owner only; refuses to replace an existing one."""
        key = Ed25519PrivateKey.generate()
        write_private(path, key.private_bytes_raw().hex().encode() + b"\n")
        identity = cls(key)
        path.with_suffix(".pub").write_text(identity.public + "\n")
        return identity

    @classmethod
    def load(cls, path: Path) -> "Identity":
        """Read a stored key; refuses one that other users of the machine can read.

        The ``.pub`` file beside it is derived from the key. A file of an earlier version, without the encryption
        key, is replaced.
        """
        check_private(path)
        try:
            identity = cls(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip())))
        except (ValueError, UnicodeDecodeError):
            raise InvalidValue(
                f"{path} holds no identity key",
                "it must be 64 hexadecimal digits",
                "restore it from a backup, or set up the site again",
            ) from None
        public = path.with_suffix(".pub")
        if public.exists() and public.read_text().strip() != identity.public:
            with suppress(OSError):  # the folder is read-only; only the key itself matters
                public.write_text(identity.public + "\n")
        return identity

    @property
    def public(self) -> str:
        """The public key as 128 hexadecimal digits: for checking signatures, and for encryption."""
        encryption = self.encryption_key().public_key().public_bytes_raw()
        return (self.key.public_key().public_bytes_raw() + encryption).hex()

    def encryption_key(self) -> X25519PrivateKey:
        """The private key that decrypts messages to this identity."""
        return X25519PrivateKey.from_private_bytes(self.secret(_ENCRYPTION))

    def secret(self, purpose: bytes) -> bytes:
        """32 bytes for one purpose that only this key's owner can derive, by HKDF-SHA256 (RFC 5869)."""
        return HKDF(SHA256(), 32, salt=None, info=purpose).derive(self.key.private_bytes_raw())


def signing_key(public: str) -> bytes:
    """The Ed25519 half of a public key, 32 bytes."""
    return bytes.fromhex(public)[:32]


def encryption_key(public: str) -> X25519PublicKey:
    """The X25519 half of a public key."""
    return X25519PublicKey.from_public_bytes(bytes.fromhex(public)[32:])


def fingerprint(public: str) -> str:
    """128 bits of the SHA-256 of a public key in groups, for comparison by telephone.

    >>> fingerprint("0123456789abcdef" * 8)
    '23c5-dc6f-5df5-36ce-f090-5793-6c04-10fd'
    """
    digest = hashlib.sha256(bytes.fromhex(public)).hexdigest()
    return "-".join(digest[start : start + 4] for start in range(0, 32, 4))


def check_public_key(text: str) -> str:
    """The public key if it is one; `InvalidValue` otherwise."""
    try:
        raw = bytes.fromhex(text.strip())
        if len(raw) != PUBLIC_BYTES:
            raise ValueError(f"{len(raw)} bytes")
        Ed25519PublicKey.from_public_bytes(raw[:32])
        X25519PrivateKey.generate().exchange(
            X25519PublicKey.from_public_bytes(raw[32:])
        )  # no point of small order
    except ValueError:
        older = len(text.strip()) == PUBLIC_BYTES
        raise InvalidValue(
            f"{text[:80]!r} is not a public key" + " of this version" * older,
            f"it must be {2 * PUBLIC_BYTES} hexadecimal digits: the signature key, then the encryption key",
            "have its owner run this version of fedveil and send its new .pub file; compare the fingerprints"
            if older
            else "copy the complete line of the .pub file",
        ) from None
    return text.strip().lower()


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only its owner can ever read, whole or not at all; refuses to replace an existing one."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    io.write_private(unfinished, content)
    try:
        os.link(unfinished, path)  # unlike a rename, it replaces nothing
    except FileExistsError:
        raise InvalidValue(
            f"{path} exists", "a key is never replaced", "delete it yourself if it is no longer needed"
        ) from None
    finally:
        unfinished.unlink()


@contextmanager
def private_files() -> Iterator[None]:
    """Files that this process makes inside this context are readable by its user only, whatever their folder's mode."""
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
            "the key in this file is needed",
            "put the start-up kit's file there, or run the init command again",
        ) from None
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise InvalidValue(
            f"{path} can be read by other users of this machine",
            "a secret must be readable by one user only",
            f"run chmod 600 {path}, and assume that they know the key",
        )
