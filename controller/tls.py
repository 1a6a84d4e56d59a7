"""Mutual TLS of the controller's listeners, and whose certificate a peer showed.

Files are read again when they change: a renewed certificate needs no restart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import structlog

from controller.admission import Refusal
from controller.auth import party_of
from controller.errors import Unauthenticated
from controller.sessions import Peer
from controller.settings import Settings
from tealnet.core.identity import Kind
from tealnet.core.revoked import RevocationList

log = structlog.get_logger()


class Certificates:
    """The controller's own certificate, key and CA."""

    def __init__(self, settings: Settings) -> None:
        self._files: tuple[Path, Path, Path] = (settings.key, settings.cert, settings.ca)

    def mutual(self) -> grpc.ServerCredentials:
        """For a listener that asks for client certificates. Raises OSError for files that can't be read."""
        return self._credentials(require=True)

    def anonymous(self) -> grpc.ServerCredentials:
        """For the listener of those who have no certificate yet. Raises OSError."""
        return self._credentials(require=False)

    def _credentials(self, *, require: bool) -> grpc.ServerCredentials:
        stamp, first = self._now(), self._configuration(require=require)

        def fetch() -> Any:
            """Called by gRPC at each handshake, in a thread of its own; None: nothing has changed.

            An answer replaces what all handshakes of the listener are made from, also of those that are just being
            made: with an answer to each, the process crashed in one of two bursts of 200 hosts.
            """
            nonlocal stamp
            try:
                if (now := self._now()) == stamp:
                    return None
                found, stamp = self._configuration(require=require), now
            except OSError as error:
                log.error("certificates not read again", error=str(error))
                return None
            log.info("certificates read again")
            return found

        # The first configuration is told once: these are the credentials of one listener.
        return grpc.dynamic_ssl_server_credentials(first, fetch, require_client_authentication=require)

    def _configuration(self, *, require: bool) -> Any:
        key, cert, ca = (file.read_bytes() for file in self._files)
        # Who has no certificate yet knows nothing of the CA but its hash, so it is shown with ours.
        shown = cert if require else cert + b"\n" + ca
        return grpc.ssl_server_certificate_configuration([(key, shown)], root_certificates=ca)

    def _now(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_ino) for s in (file.stat() for file in self._files))


def host_of(context: grpc.aio.ServicerContext[Any, Any], trust_domain: str, revoked: RevocationList) -> Peer:
    """The host that opened a stream, from its certificate alone. Raises Refusal."""
    pem = b"".join((context.auth_context() or {}).get("x509_pem_cert", ()))
    try:
        party = party_of(pem, trust_domain)
    except Unauthenticated as error:
        raise Refusal("Revoked", error.text, retry_after_ms=10_000) from error
    if party.identity.kind is not Kind.HOST:
        raise Refusal("Protocol", f"{party.identity.role} is not a host", retry_after_ms=10_000)
    if revoked.has(party.certificate):
        raise Refusal("Revoked", "the certificate is on the revocation list", retry_after_ms=10_000)
    return Peer(party.identity.name, party.issued, party.ends, party.certificate)
