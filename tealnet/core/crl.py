"""Revocation lists (X.509 CRLs, RFC 5280 section 5): which single certificates of a CA count no more.

A file holds one or several, PEM. What names a certificate is its issuer and its serial number.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from tealnet.core.pki import SKEW, Ca, PkiError, load_certificate

NAME = "ca.crl"
DAYS = 3650  # until a list of ours says that a newer one should be there
_BLOCK = re.compile(rb"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.S)
_CERT = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.S)


class Revoked(NamedTuple):
    """One certificate."""

    issuer: str  # RFC 4514
    serial: int


NONE = Revoked("", 0)
"""No certificate."""


def key_of(cert: x509.Certificate) -> Revoked:
    """How lists name a certificate."""
    return Revoked(cert.issuer.rfc4514_string(), cert.serial_number)


def read(pem: bytes, what: str) -> list[x509.CertificateRevocationList]:
    """The lists of a file; `what` names it in the PkiError for one that holds none, or anything broken."""
    try:
        found = [x509.load_pem_x509_crl(block) for block in _BLOCK.findall(pem)]
    except ValueError as error:
        raise PkiError(f"{what} holds a broken revocation list") from error
    if not found:
        raise PkiError(f"{what} holds no PEM revocation list (X509 CRL)")
    return found


def revoked(pem: bytes, authorities: bytes, what: str) -> frozenset[Revoked]:
    """The certificates that a file revokes, by lists that one of the authorities (PEM) has signed; others are left out.

    Raises PkiError if there is no such list: the file is not one of this site.
    """
    issuers = [load_certificate(block, "authority") for block in _CERT.findall(authorities)]
    lists = [crl for crl in read(pem, what) if any(_signed(crl, issuer) for issuer in issuers)]
    if not lists:
        raise PkiError(f"no list in {what} is signed by an authority of this site")
    return frozenset(Revoked(crl.issuer.rfc4514_string(), entry.serial_number) for crl in lists for entry in crl)


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return crl.issuer == issuer.subject and crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (InvalidSignature, TypeError):
        return False


def revoke(directory: Path, ca: Ca, serials: Iterable[int]) -> tuple[Path, int]:
    """Add serial numbers to `ca.crl` of a CA's directory, which is replaced whole; returns it and how many it has.

    Raises PkiError if the list that is there is not the CA's.
    """
    file = directory / NAME
    now, number, entries = datetime.now(UTC), 1, dict[int, x509.RevokedCertificate]()
    if file.exists():
        (old, *more) = read(file.read_bytes(), str(file))
        if more or not _signed(old, load_certificate(ca.cert_pem, "authority")):
            raise PkiError(f"{file} is not the list of this authority alone")
        entries = {entry.serial_number: entry for entry in old}
        number = old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number + 1
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        entries.setdefault(serial, entry)
    pem = ca.sign_crl(entries.values(), number=number, begin=now - SKEW, end=now + timedelta(days=DAYS))
    draft = file.with_suffix(".new")
    try:
        draft.write_bytes(pem)
        os.replace(draft, file)
    except OSError as error:
        raise PkiError(f"cannot write {file}: {error.strerror}") from error
    return file, len(entries)


def as_text(crl: x509.CertificateRevocationList) -> list[tuple[str, str]]:
    """For people: issuer, when it was made, each serial number with its time."""
    rows = [("issuer", crl.issuer.rfc4514_string()), ("made", f"{crl.last_update_utc:%F %T} UTC")]
    return [*rows, *(("revoked", f"{e.serial_number:x} {e.revocation_date_utc:%F %T} UTC") for e in crl)]


__all__ = ["NAME", "NONE", "Revoked", "as_text", "key_of", "read", "revoke", "revoked"]
