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
from controller.sessions import Peer
from controller.settings import Settings
from tealnet.core.identity import IdentityError, Kind, parse_identity
from tealnet.core.pki import PkiError, load_certificate, uri_names

log = structlog.get_logger()


class Certificates:
    """The controller's own certificate, key and CA, for one listener: each must be told of a change by itself."""

    def __init__(self, settings: Settings) -> None:
        self._files: tuple[Path, Path, Path] = (settings.key, settings.cert, settings.ca)
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._current: Any = None

    def credentials(self) -> grpc.ServerCredentials:
        """For listeners that ask for client certificates. Raises OSError for files that can't be read."""
        self._stamp = self._now()
        self._current = self._configuration()
        return grpc.dynamic_ssl_server_credentials(self._current, self._fetch, require_client_authentication=True)

    def _fetch(self) -> Any:
        """Called by gRPC when a listener is added and at each handshake, in a thread of its own.

        Never answers None ("not changed"): each listener asks for itself, and a second one would never hear of any.
        """
        try:
            stamp = self._now()
            if stamp != self._stamp:
                self._current = self._configuration()
                self._stamp = stamp
                log.info("certificates read again")
        except OSError as error:
            log.error("certificates not read again", error=str(error))
        return self._current

    def _configuration(self) -> Any:
        key, cert, ca = (file.read_bytes() for file in self._files)
        return grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=ca)

    def _now(self) -> tuple[tuple[int, int], ...]:
        return tuple((s.st_mtime_ns, s.st_ino) for s in (file.stat() for file in self._files))


def host_of(context: grpc.aio.ServicerContext[Any, Any], trust_domain: str) -> Peer:
    """The host that opened a stream, from its certificate alone. Raises Refusal."""
    pem = b"".join(context.auth_context().get("x509_pem_cert", ()))
    try:
        cert = load_certificate(pem, "client certificate")
        uris = uri_names(cert)
        if len(uris) != 1:
            raise IdentityError(f"the certificate has {len(uris)} URI names, not one")
        identity = parse_identity(uris[0], trust_domain)
    except (PkiError, IdentityError) as error:
        raise Refusal("Revoked", str(error), retry_after_ms=10_000) from error
    if identity.kind is not Kind.HOST:
        raise Refusal("Protocol", f"{identity.role} is not a host", retry_after_ms=10_000)
    return Peer(identity.name, cert.not_valid_before_utc.timestamp())
