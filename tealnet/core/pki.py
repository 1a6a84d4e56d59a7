"""The site's own CA and the leaves it signs: ECDSA P-256, X.509 v3 (RFC 5280), identities as URI SANs.

Production may bring certificates of its own instead; all that the programs read in one is described in `identity`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tealnet.core.identity import Identity, IdentityError, Kind, parse_role, parse_trust_domain

Address = IPv4Address | IPv6Address
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

CA_DAYS = 3650
LEAF_DAYS = 365
_LABEL = "[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?"
_DNS_NAME = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*")

SKEW = timedelta(minutes=5)
"""How far back a certificate begins, for hosts whose clocks are behind."""


_NO_USE = dict.fromkeys(
    ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"),
    False,
)
_SIGNS_CERTIFICATES = x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **_NO_USE)
_SIGNS_HANDSHAKES = x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **_NO_USE)


class PkiError(Exception):
    """Something is wrong with a key, certificate, request or its file; the text says what, and which file."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate and its private key, both PEM."""

    cert_pem: bytes
    key_pem: bytes

    def save(self, directory: Path, stem: str) -> tuple[Path, Path]:
        """Write `<stem>.crt` and `<stem>.key` (mode 0600); returns their paths.

        Raises PkiError if either exists: keys are never overwritten.
        """
        return _save_pair(directory, stem, cert=self.cert_pem, key=self.key_pem)


@dataclass(frozen=True, slots=True)
class Request:
    """A certificate signing request (PKCS #10, RFC 2986) and the private key that stays at home, both PEM."""

    csr_pem: bytes
    key_pem: bytes


class Ca:
    """A certificate authority for one trust domain."""

    def __init__(self, cert: x509.Certificate, key: ec.EllipticCurvePrivateKey, trust_domain: str) -> None:
        self._cert = cert
        self._key = key
        self.trust_domain = trust_domain

    @classmethod
    def create(cls, trust_domain: str, *, days: int = CA_DAYS) -> Ca:
        """A new CA with a new key. Raises IdentityError for a trust domain that is none."""
        parse_trust_domain(trust_domain)
        key = ec.generate_private_key(ec.SECP256R1())
        begin = datetime.now(UTC) - SKEW
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Tealnet CA {trust_domain}"[:64])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        cert = (
            x509.CertificateBuilder(name, name, key.public_key(), _serial(), begin, begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_SIGNS_CERTIFICATES, critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(_names([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(cert, key, trust_domain)

    @classmethod
    def load(cls, directory: Path) -> Ca:
        """The CA saved in `directory`. Raises PkiError that names the file and what is wrong with it."""
        cert_file, key_file = directory / "ca.crt", directory / "ca.key"
        cert = load_certificate(_read(cert_file), str(cert_file))
        if _mode(key_file) & 0o077:
            raise PkiError(f"{key_file} can be read by others: chmod 600 {key_file}")
        key = _private_key(_read(key_file), str(key_file))
        if cert.public_key() != key.public_key():
            raise PkiError(f"{key_file} is not the key of {cert_file}")
        if not _is_authority(cert):
            raise PkiError(f"{cert_file} is not the certificate of an authority")
        uris = uri_names(cert)
        if len(uris) != 1 or not uris[0].startswith("spiffe://"):
            raise PkiError(f"{cert_file} does not name its trust domain; was it made by `teal pki init`?")
        return cls(cert, key, parse_trust_domain(uris[0].removeprefix("spiffe://")))

    @property
    def cert_pem(self) -> bytes:
        """The CA's certificate: what every party must have."""
        return self._cert.public_bytes(serialization.Encoding.PEM)

    def save(self, directory: Path) -> tuple[Path, Path]:
        """Write `ca.crt` and `ca.key` (mode 0600); returns their paths. Raises PkiError if either exists."""
        return _save_pair(directory, "ca", cert=self.cert_pem, key=_private_pem(self._key))

    def issue(
        self,
        role: str,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[Address | str] = (),
        days: int = LEAF_DAYS,
        not_before: datetime | None = None,
    ) -> Leaf:
        """A new key and its certificate for `role`, valid `days` days (never longer than the CA) from `not_before`.

        `dns` and `ips` are what clients call the party; a controller needs at least one. Raises IdentityError and
        PkiError.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        cert = self._certify(key.public_key(), role, dns=dns, ips=ips, days=days, not_before=not_before)
        return Leaf(cert, _private_pem(key))

    def sign_csr(
        self,
        csr_pem: bytes,
        role: str,
        *,
        dns: Sequence[str] = (),
        ips: Sequence[Address | str] = (),
        days: int = LEAF_DAYS,
        not_before: datetime | None = None,
    ) -> bytes:
        """A certificate (PEM) for the key of a request, for `role`.

        Only the key is taken from the request: who it is for is decided here. Raises IdentityError, PkiError.
        """
        try:
            csr = x509.load_pem_x509_csr(csr_pem)
            valid = csr.is_signature_valid
            key = csr.public_key()
        except (ValueError, UnsupportedAlgorithm) as error:
            raise PkiError(f"not a certificate signing request: {error}") from error
        if not valid:
            raise PkiError("the signing request is not signed by its own key")
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) or not is_strong(key):
            raise PkiError("the signing request's key must be ECDSA of 256 bits or RSA of 2048 at least")
        return self._certify(key, role, dns=dns, ips=ips, days=days, not_before=not_before)

    def sign_crl(
        self, entries: Iterable[x509.RevokedCertificate], *, number: int, begin: datetime, end: datetime
    ) -> bytes:
        """A revocation list (PEM) of these certificates; `number` grows with each."""
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = x509.CertificateRevocationListBuilder(self._cert.subject, begin, end, [], list(entries))
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        crl = builder.add_extension(authority, critical=False).sign(self._key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.PEM)

    def _certify(
        self,
        key: PublicKey,
        role: str,
        *,
        dns: Sequence[str],
        ips: Sequence[Address | str],
        days: int,
        not_before: datetime | None,
    ) -> bytes:
        identity = parse_role(role)
        if identity.kind is Kind.CONTROLLER and not dns and not ips:
            raise PkiError("a controller's certificate needs a DNS name or an address that clients call it by")
        begin, end = self._validity(days, not_before)
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        cert = (
            x509.CertificateBuilder(self._cert.subject, _subject(identity), key, _serial(), begin, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_SIGNS_HANDSHAKES, critical=True)
            .add_extension(x509.ExtendedKeyUsage(_purposes(identity)), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(_names(_general_names(identity.uri(self.trust_domain), dns, ips)), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return cert.public_bytes(serialization.Encoding.PEM)

    def _validity(self, days: int, not_before: datetime | None) -> tuple[datetime, datetime]:
        begin = (not_before or datetime.now(UTC) - SKEW).astimezone(UTC)
        begin = max(begin, self._cert.not_valid_before_utc)
        end = min(begin + timedelta(days=days), self._cert.not_valid_after_utc)
        if days < 1 or end <= begin:
            raise PkiError(f"no validity left: {days} days from {begin:%F %T}, the CA ends {end:%F %T}")
        return begin, end


def make_csr(role: str, trust_domain: str) -> Request:
    """A new key and a request that a CA signs it for `role`. Raises IdentityError."""
    identity = parse_role(role)
    key = ec.generate_private_key(ec.SECP256R1())
    names = _names([x509.UniformResourceIdentifier(identity.uri(parse_trust_domain(trust_domain)))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(_subject(identity))
    csr = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return Request(csr.public_bytes(serialization.Encoding.PEM), _private_pem(key))


def fingerprint(cert_pem: bytes) -> str:
    """SHA-256 of a certificate (its DER form) in hex, as `openssl x509 -fingerprint -sha256` without the colons."""
    der = load_certificate(cert_pem, "certificate").public_bytes(serialization.Encoding.DER)
    return hashlib.sha256(der).hexdigest()


def load_certificate(pem: bytes, what: str) -> x509.Certificate:
    """The first certificate of a PEM text; `what` names it in the PkiError."""
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise PkiError(f"{what} holds no PEM certificate") from error


def is_strong(key: object) -> bool:
    """Whether a public key is one that counts: ECDSA of 256 bits or RSA of 2048 at least, or Ed25519."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return key.curve.key_size >= 256
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size >= 2048
    return isinstance(key, ed25519.Ed25519PublicKey)


def uri_names(cert: x509.Certificate) -> list[str]:
    """The URI SANs of a certificate."""
    try:
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


# ---- parts of a certificate


def _is_authority(cert: x509.Certificate) -> bool:
    try:
        return cert.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _serial() -> int:
    return secrets.randbits(127) | 1 << 127  # 128 bits, random (RFC 5280 4.1.2.2: positive, at most 20 octets)


def _subject(identity: Identity) -> x509.Name:
    """For people only; cut to what X.520 allows."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, identity.role[:64])])


def _names(names: Sequence[x509.GeneralName]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def _general_names(uri: str, dns: Sequence[str], ips: Sequence[Address | str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for name in dns:
        if not _DNS_NAME.fullmatch(name) or len(name) > 253:
            raise PkiError(f"{name!r} is no DNS name")
        names.append(x509.DNSName(name))
    for ip in ips:
        try:
            names.append(x509.IPAddress(ip_address(ip)))
        except ValueError as error:
            raise PkiError(f"{ip!r} is no IP address") from error
    return names


def _purposes(identity: Identity) -> list[x509.ObjectIdentifier]:
    """Only a controller may be a server, so that no other leaf can pose as one."""
    client = [ExtendedKeyUsageOID.CLIENT_AUTH]
    return [ExtendedKeyUsageOID.SERVER_AUTH, *client] if identity.kind is Kind.CONTROLLER else client


# ---- files


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _private_key(pem: bytes, what: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise PkiError(f"{what} holds no unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{what} is not an ECDSA key")
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PkiError(f"cannot read {path}: {error.strerror}") from error


def _mode(path: Path) -> int:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise PkiError(f"cannot read {path}: {error.strerror}") from error


def _save_pair(directory: Path, stem: str, *, cert: bytes, key: bytes) -> tuple[Path, Path]:
    cert_file, key_file = directory / f"{stem}.crt", directory / f"{stem}.key"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in (key_file, cert_file):
            if path.exists():
                raise PkiError(f"{path} exists; it is never overwritten: remove it first, or write elsewhere")
        _write_new(key_file, key, mode=0o600)
        _write_new(cert_file, cert, mode=0o644)
    except OSError as error:
        raise PkiError(f"cannot write {error.filename or directory}: {error.strerror}") from error
    return cert_file, key_file


def _write_new(path: Path, content: bytes, *, mode: int) -> None:
    """O_EXCL: also of two that run at once only one writes."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)


__all__ = [
    "Ca",
    "IdentityError",
    "Leaf",
    "PkiError",
    "Request",
    "fingerprint",
    "is_strong",
    "load_certificate",
    "make_csr",
    "uri_names",
]
