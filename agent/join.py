"""`teal-agent join`: from nothing but a one-time token to a certificate.

The key is made here and never leaves. The controller is recognised by the SHA-256 of its CA certificate, which the
admin has handed over with the token; nothing, least of all the token, is sent before the controller has proved that
its certificate is signed by that CA.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tealnet.v1 import host_pb2, host_pb2_grpc

TIMEOUT = 15.0  # seconds


class JoinError(Exception):
    """Why this host could not join."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the admin has handed over."""

    server: str  # host:port of the join listener
    host: str
    token: str
    ca_sha256: str  # hex


@dataclass(frozen=True, slots=True)
class Files:
    """Where the result goes."""

    ca: Path
    cert: Path
    key: Path


async def join(ticket: Ticket, files: Files, *, server_name: str = "") -> None:
    """Get a certificate and write key, certificate and CA. Raises JoinError and writes nothing."""
    ca = await _pinned_ca(ticket)
    key = ec.generate_private_key(ec.SECP256R1())
    answer = await _ask(ticket, ca=ca, csr=_csr(ticket.host, key), server_name=server_name)
    _check(answer, key=key, pinned=ticket.ca_sha256)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for path, content, mode in (
        (files.key, private, 0o600),
        (files.cert, answer.certificate_pem, 0o644),
        (files.ca, answer.ca_pem, 0o644),
    ):
        _write(path, content, mode=mode)


async def _pinned_ca(ticket: Ticket) -> bytes:
    """The CA certificate (PEM) that the server presents and whose hash is the pinned one.

    It proves nothing yet: the real call is verified against it.
    """
    host, _, port = ticket.server.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        async with asyncio.timeout(TIMEOUT):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
    except (OSError, TimeoutError, ValueError) as error:
        raise JoinError(f"no connection to {ticket.server}: {error}") from error
    try:
        chain = _chain(writer.get_extra_info("ssl_object"))
    finally:
        writer.transport.abort()
    wanted = ticket.ca_sha256.lower().replace(":", "")
    for der in chain:
        if sha256(der).hexdigest() == wanted:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    raise JoinError(f"{ticket.server} does not present the CA with SHA-256 {wanted}: a wrong server, or a wrong hash")


def _chain(connection: ssl.SSLObject) -> Sequence[bytes]:
    """The certificates that the server sent, DER. Public only from Python 3.13 on; before that one level deeper."""
    get = getattr(connection, "get_unverified_chain", None)
    if get is not None:
        return [bytes(der) for der in get()]
    inner = connection._sslobj  # type: ignore[attr-defined]
    return [ssl.PEM_cert_to_DER_cert(certificate.public_bytes()) for certificate in inner.get_unverified_chain()]


def _csr(host: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A request for a certificate; which name it gets is the controller's decision."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


async def _ask(ticket: Ticket, *, ca: bytes, csr: bytes, server_name: str) -> host_pb2.JoinResponse:
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    credentials = grpc.ssl_channel_credentials(ca)
    async with grpc.aio.secure_channel(ticket.server, credentials, options) as channel:
        request = host_pb2.JoinRequest(host_id=ticket.host, token=ticket.token, csr_pem=csr)
        try:
            answer: host_pb2.JoinResponse = await host_pb2_grpc.JoinServiceStub(channel).Join(request, timeout=TIMEOUT)
        except grpc.aio.AioRpcError as error:
            raise JoinError(f"{ticket.server}: {error.details()}") from error
    return answer


def _check(answer: host_pb2.JoinResponse, *, key: ec.EllipticCurvePrivateKey, pinned: str) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate_pem)
        ca = x509.load_pem_x509_certificate(answer.ca_pem)
    except ValueError as error:
        raise JoinError(f"the answer holds no certificate: {error}") from error
    if certificate.public_key() != key.public_key():
        raise JoinError("the certificate is for another key")
    if ca.fingerprint(hashes.SHA256()).hex() != pinned.lower().replace(":", ""):
        raise JoinError("the answer holds another CA")


def _write(path: Path, content: bytes, *, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
