"""Certificates with any mistake in them, made by hand: our own CA would sign none of these."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tealnet.core.pki import Ca, Leaf

URI = x509.UniformResourceIdentifier


@dataclass(frozen=True)
class Plan:
    """A certificate in the making; what it is without changes is a right one of an admin.

    Its times count from when it is signed: one of an earlier moment is refused as older than the host's object is,
    whatever else is right or wrong with it.
    """

    names: Sequence[x509.GeneralName] | None = (URI("spiffe://tealnet.local/admin"),)
    subject: str = "admin"
    begin: timedelta = timedelta(minutes=-1)
    end: timedelta = timedelta(hours=1)
    usage: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.CLIENT_AUTH,)
    is_authority: bool = False
    weak: bool = False


def key_pem(key: Any) -> bytes:
    """A private key as text."""
    plain = serialization.NoEncryption()
    found: bytes = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return found


def signed(plan: Plan, issuer: x509.Certificate | None, issuer_key: Any) -> tuple[x509.Certificate, Any]:
    """The certificate of a plan and its key; without an issuer it signs itself."""
    key: Any = rsa.generate_private_key(65537, 1024) if plan.weak else ec.generate_private_key(ec.SECP256R1())
    subject, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, plan.subject)]), datetime.now(UTC)
    builder = x509.CertificateBuilder(
        issuer.subject if issuer else subject, subject, key.public_key(), x509.random_serial_number(),
        now + plan.begin, now + plan.end,
    )  # fmt: skip
    builder = builder.add_extension(x509.BasicConstraints(ca=plan.is_authority, path_length=None), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(plan.usage), critical=False)
    if plan.names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(plan.names), critical=False)
    return builder.sign(issuer_key or key, hashes.SHA256()), key


def leaf(ca: Ca, plan: Plan) -> Leaf:
    """Signed by a CA, whatever it would say."""
    cert, key = signed(plan, ca._cert, ca._key)
    return Leaf(cert.public_bytes(serialization.Encoding.PEM), key_pem(key))


def self_signed(plan: Plan) -> Leaf:
    """By its own key."""
    cert, key = signed(plan, None, None)
    return Leaf(cert.public_bytes(serialization.Encoding.PEM), key_pem(key))


def by_a_leaf(ca: Ca, plan: Plan, *, signer: Plan) -> Leaf:
    """Signed with the key of a certificate that is no authority of ours, which is sent along."""
    middle, middle_key = signed(signer, ca._cert, ca._key)
    cert, key = signed(plan, middle, middle_key)
    chain = b"".join(c.public_bytes(serialization.Encoding.PEM) for c in (cert, middle))
    return Leaf(chain, key_pem(key))


def end_of(leaf: Leaf) -> datetime:
    """When a certificate ends; certificates know seconds only."""
    return x509.load_pem_x509_certificate(leaf.cert_pem).not_valid_after_utc


def uris(*texts: str) -> list[x509.GeneralName]:
    """URI names."""
    return [URI(text) for text in texts]


def _bad(role: str) -> dict[str, Callable[[Ca], Leaf]]:
    good = f"spiffe://tealnet.local/{role}"
    right = Plan(names=uris(good), subject=role)
    hour = timedelta(hours=1)
    foreign = Ca.create("tealnet.local")
    plans = {
        "expired": replace(right, begin=-48 * hour, end=-hour),
        "expired a second ago": replace(right, begin=-48 * hour, end=-timedelta(seconds=1)),
        "not yet valid": replace(right, begin=hour, end=2 * hour),
        "common name only": replace(right, names=None),
        "DNS name only": replace(right, names=[x509.DNSName(role.replace("/", "."))]),
        "e-mail name only": replace(right, names=[x509.RFC822Name("admin@tealnet.local")]),
        "address only": replace(right, names=[x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
        "no names at all": replace(right, names=[]),
        "two names": replace(right, names=uris(good, good + "x")),
        "the same name twice": replace(right, names=uris(good, good)),
        "two names, the first of no role": replace(right, names=uris("spiffe://tealnet.local", good)),
        "other trust domain": replace(right, names=uris(good.replace("tealnet.local", "tealnet.example"))),
        "trust domain in capitals": replace(right, names=uris(good.replace("tealnet", "Tealnet"))),
        "longer trust domain": replace(right, names=uris(good.replace("tealnet.local", "tealnet.local.example"))),
        "port in the trust domain": replace(right, names=uris(good.replace("local/", "local:443/"))),
        "user in the trust domain": replace(right, names=uris(good.replace("tealnet.local", "a@tealnet.local"))),
        "no trust domain": replace(right, names=uris(f"spiffe:///{role}")),
        "other scheme": replace(right, names=uris(good.replace("spiffe:", "https:"))),
        "scheme in capitals": replace(right, names=uris(good.replace("spiffe:", "SPIFFE:"))),
        "no role": replace(right, names=uris("spiffe://tealnet.local")),
        "unknown role": replace(right, names=uris("spiffe://tealnet.local/root")),
        "role and more": replace(right, names=uris(good + "/x")),
        "role and a slash": replace(right, names=uris(good + "/")),
        "two slashes": replace(right, names=uris(f"spiffe://tealnet.local//{role}")),
        "dots": replace(right, names=uris(f"spiffe://tealnet.local/x/../{role}")),
        "percent": replace(right, names=uris(good.replace("a", "%61").replace("o", "%6f"))),
        "query": replace(right, names=uris(good + "?x")),
        "fragment": replace(right, names=uris(good + "#x")),
        "space": replace(right, names=uris(good + " ")),
        "newline": replace(right, names=uris(good + "\n")),
        "zero byte": replace(right, names=uris(good + "\x00x")),
        "tenant of no name": replace(right, names=uris("spiffe://tealnet.local/tenant//admin")),
        "tenant in capitals": replace(right, names=uris("spiffe://tealnet.local/tenant/ACME/admin")),
        "tenant that is every one": replace(right, names=uris("spiffe://tealnet.local/tenant/-/admin")),
        "for servers only": replace(right, usage=[ExtendedKeyUsageOID.SERVER_AUTH]),
        "for signing code": replace(right, usage=[ExtendedKeyUsageOID.CODE_SIGNING]),
        "weak key": replace(right, weak=True),
    }
    found: dict[str, Callable[[Ca], Leaf]] = {name: partial(leaf, plan=plan) for name, plan in plans.items()}
    lone = replace(right, usage=[ExtendedKeyUsageOID.CLIENT_AUTH])
    found |= {
        "other CA": lambda ca: foreign.issue(role),
        "other CA of the same name": lambda ca: leaf(foreign, right),
        "self-signed": lambda ca: self_signed(right),
        "self-signed authority": lambda ca: self_signed(replace(right, is_authority=True)),
        "signed by another's leaf": lambda ca: by_a_leaf(ca, right, signer=lone),
        "signed by an authority below ours": lambda ca: by_a_leaf(ca, right, signer=replace(lone, is_authority=True)),
        "the key of another": lambda ca: Leaf(ca.issue(role).cert_pem, ca.issue(role).key_pem),
    }
    return found


BAD_ADMIN = _bad("admin")
BAD_HOST = _bad("host/h1")
"""By what is wrong: a certificate that must not count, though all else of it says admin, or host/h1."""
