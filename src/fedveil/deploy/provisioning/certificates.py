"""Keys and certificates of a federation: a new certificate authority, a certificate for the SuperLink."""

import datetime
from collections.abc import Sequence
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedveil.errors import InvalidValue

__all__ = ["Authority", "days_left", "names_of", "node_keys"]

_AUTHORITY_DAYS, _SERVER_DAYS, _BEFORE_DAYS = 3650, 825, 1
_LONGEST_COMMON_NAME = 64


class Authority:
    """A certificate authority; its private key stays with the coordinator.

    Args:
        key: the private key.
        certificate: the self-signed certificate that every hospital receives.
    """

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key, self._certificate = key, certificate

    @classmethod
    def create(cls, name: str) -> "Authority":
        """A new authority."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"fedveil {name} authority"[:_LONGEST_COMMON_NAME])
        builder = _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
        usage = x509.KeyUsage(
            digital_signature=False,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return cls(key, builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, key: bytes, certificate: bytes) -> "Authority":
        """An authority from its PEM files."""
        try:
            private = load_pem_private_key(key, None)
            public = x509.load_pem_x509_certificate(certificate)
        except ValueError as error:
            raise InvalidValue(
                f"the certificate authority cannot be read ({error})",
                "ca.key and ca.pem must be PEM files",
                "restore them from a backup",
            ) from None
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise InvalidValue(
                "ca.key is not an elliptic-curve key",
                "it must be one, as fedveil makes it",
                "restore the original",
            )
        return cls(private, public)

    @property
    def certificate(self) -> bytes:
        """The authority's certificate (PEM)."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def key(self) -> bytes:
        """The authority's private key (PEM)."""
        return _private(self._key, PrivateFormat.PKCS8)

    def certify(self, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """A server's key and certificate (PEM) for these host names and addresses, and for localhost."""
        names = [_alternative(host) for host in dict.fromkeys([*hosts, "localhost", "127.0.0.1", "::1"])]
        return self._certify(hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, _SERVER_DAYS, names)

    def certify_node(self, hospital: str) -> tuple[bytes, bytes]:
        """A node's key and certificate (PEM), by which NVFlare knows it; valid as long as a new authority's is."""
        return self._certify(hospital, ExtendedKeyUsageOID.CLIENT_AUTH, _AUTHORITY_DAYS)

    def _certify(
        self, common: str, purpose: x509.ObjectIdentifier, days: int, names: Sequence[x509.GeneralName] = ()
    ) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _builder(
            _name(common[:_LONGEST_COMMON_NAME]), self._certificate.subject, key.public_key(), days
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        certificate = builder.add_extension(issuer, critical=False).sign(self._key, hashes.SHA256())
        return _private(key, PrivateFormat.PKCS8), certificate.public_bytes(Encoding.PEM)


def names_of(certificate: bytes) -> list[str]:
    """The host names and addresses that a certificate (PEM) names."""
    try:
        parsed = x509.load_pem_x509_certificate(certificate)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise InvalidValue(
            f"the certificate cannot be read ({error})",
            "it must be a PEM file that names addresses",
            "restore it from a backup",
        ) from None
    return [str(name.value) for name in names]


def days_left(certificate: bytes) -> int:
    """Days until the last of some certificates (PEM) expires; negative if it has."""
    try:
        until = max(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(certificate))
    except ValueError as error:
        raise InvalidValue(
            f"the certificate cannot be read ({error})", "it must be a PEM file", "restore it from a backup"
        ) from None
    return (until - datetime.datetime.now(datetime.UTC)).days


def node_keys() -> tuple[bytes, bytes]:
    """A node's private key (OpenSSH) and public key (PEM), of the kind that Flower needs."""
    key = ec.generate_private_key(ec.SECP384R1())
    return _private(key, PrivateFormat.OpenSSH), key.public_key().public_bytes(
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )


def _private(key: ec.EllipticCurvePrivateKey, form: PrivateFormat) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=_BEFORE_DAYS))
        .not_valid_after(now + datetime.timedelta(days=days))
    )
