"""Which controllers count: an authority of the site has signed them, and its revocation list does not name them.

gRPC for Python checks no list at the handshake and never shows a client the certificate of its peer (docs/adr/0016). So
where there is a list, the server is asked for its certificate first, in a handshake of our own. The connection that
follows trusts this one certificate and no authority, so that it is not that of another server, whose was not seen.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path

from tealnet.core.crl import NONE, key_of
from tealnet.core.pki import PkiError, load_certificate
from tealnet.core.revoked import RevocationList


@dataclass(frozen=True, slots=True)
class Credentials:
    """PEM files of the mutual TLS; read again at each connection, so that renewed ones are used."""

    ca: Path
    cert: Path
    key: Path
    server_name: str = ""  # to check the certificate against, if not the address itself
    crl: Path | None = None  # None: no certificate is revoked


class Distrusted(Exception):
    """This server is not to be spoken to."""


class Trust:
    """Of one agent, for one server after the other."""

    def __init__(self, credentials: Credentials) -> None:
        self._files = credentials
        self._list: RevocationList | None = None
        self._peer = NONE

    async def roots(self, server: str) -> bytes:
        """What is to be trusted in a connection to this server, PEM.

        Raises Distrusted, ConnectionError (no answer), another OSError (a file is not there or not what it should be).
        """
        files, self._peer = self._files, NONE
        if files.crl is None:
            return files.ca.read_bytes()
        try:
            self._list = self._list or RevocationList(files.crl, files.ca)
        except PkiError as error:
            raise OSError(str(error)) from error
        shown = await _shown(server, context=_context(files), name=files.server_name)
        peer = key_of(load_certificate(shown, "the server's certificate"))
        if self._list.has(peer):
            raise Distrusted(f"the certificate of {server} is on the revocation list")
        self._peer = peer
        return shown

    def is_gone(self) -> bool:
        """Whether the certificate that was trusted last is on the list by now."""
        return self._list is not None and self._peer is not NONE and self._list.has(self._peer)


def _context(files: Credentials) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(files.ca)
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    return context


async def _shown(server: str, *, context: ssl.SSLContext, name: str) -> bytes:
    """The certificate of a server, PEM, after a handshake in which all but the list was checked."""
    host, _, port = server.rpartition(":")
    name = name or host.strip("[]")
    try:
        if server.startswith("unix:"):
            path = server.removeprefix("unix:")
            _, writer = await asyncio.open_unix_connection(path, ssl=context, server_hostname=name)
        else:
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context, server_hostname=name)
    except ssl.SSLError as error:
        raise Distrusted(f"{server}: no trust in one another's certificate: {error}") from error
    except OSError as error:
        raise ConnectionError(f"{server}: {error}") from error
    try:
        found = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    finally:
        writer.transport.abort()
    return ssl.DER_cert_to_PEM_cert(found).encode()
