"""Keys and encryption: all primitives are from `cryptography`.

Every key is derived with HKDF-SHA256 (RFC 5869) from an X25519 agreement or a random seed. Salt is the digest
of the session's roster, which binds a key to the announcements that its owner saw; info is the key's purpose, packed
unambiguously, with names in the direction of use.
"""

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedveil.federation.secure_aggregation.codec import Field, pack

__all__ = [
    "KEY_BYTES",
    "SIGNATURE_BYTES",
    "agree",
    "derive",
    "private_key",
    "public_bytes",
    "seal",
    "sign",
    "unseal",
    "verify",
]

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_ONCE = bytes(12)  # the nonce of a key that encrypts one message


def derive(secret: bytes, salt: bytes, *purpose: Field, length: int = KEY_BYTES) -> bytes:
    """HKDF-SHA256 of `secret`."""
    return HKDF(algorithm=SHA256(), length=length, salt=salt, info=pack(*purpose)).derive(secret)


def agree(private: X25519PrivateKey, public: bytes) -> bytes | None:
    """The X25519 secret of two parties; None where `public`, of small order, would give everyone the same."""
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        return None


def private_key(secret: bytes) -> X25519PrivateKey:
    """32 random bytes as an X25519 key."""
    return X25519PrivateKey.from_private_bytes(secret)


def public_bytes(private: X25519PrivateKey) -> bytes:
    """The public key of `private`."""
    return private.public_key().public_bytes_raw()


def seal(key: bytes, text: bytes, context: bytes) -> bytes:
    """AES-256-GCM under a key that is used for this text only; `context` is authenticated, not sent."""
    return AESGCM(key).encrypt(_ONCE, text, context)


def unseal(key: bytes, box: bytes, context: bytes) -> bytes | None:
    """What `seal` encrypted; None where key or context differ, or the box was altered."""
    try:
        return AESGCM(key).decrypt(_ONCE, box, context)
    except InvalidTag:
        return None


def sign(identity: Ed25519PrivateKey, *statement: Field) -> bytes:
    """A site's signature on a statement (Ed25519)."""
    return identity.sign(pack(*statement))


def verify(identity: bytes, signature: bytes, *statement: Field) -> bool:
    """Whether the owner of the public key `identity` signed the statement."""
    try:
        Ed25519PublicKey.from_public_bytes(identity).verify(signature, pack(*statement))
    except (InvalidSignature, ValueError):
        return False
    return True
