"""Join tokens: how a host without a certificate gets one (A29).

The token's hash is kept, leased and bound to one host; it is used up in the transaction that comes before the
certificate is handed out. What is wrong is not told: unknown host, wrong and expired token look the same.
"""

from __future__ import annotations

import hmac
import secrets
import time
from hashlib import sha256
from typing import Any

from controller import names
from controller.errors import FailedPrecondition, NotFound, PermissionDenied, invalid
from controller.etcd.types import delete, put, value_is
from controller.hosts import timestamp
from controller.rows import HostSpec, Intent
from controller.store import Store
from tealnet.core.pki import Ca, PkiError, fingerprint
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, host_pb2_grpc

_LIFE = 3600  # seconds, if the request does not say
_SHORTEST, _LONGEST = 60, 24 * 3600
_LARGEST_CSR = 16 << 10


class Tokens:
    """Makes join tokens. Without a CA key (`pki` is external) there are none."""

    def __init__(self, store: Store, ca: Ca | None) -> None:
        self.store, self.ca = store, ca

    async def create(self, request: host_pb2.CreateJoinTokenRequest) -> host_pb2.CreateJoinTokenResponse:
        """A new token takes the place of an older one of the same host."""
        name = names.check_name("host", request.name, "name")
        life = request.ttl.seconds if request.HasField("ttl") else _LIFE
        if request.ttl.nanos or not _SHORTEST <= life <= _LONGEST:
            raise invalid("ttl", f"whole seconds within {_SHORTEST}…{_LONGEST}")
        ca = self._authority()
        if name not in self.store.world.hosts.rows:
            await self.store.barrier()
        if (host := self.store.world.hosts.rows.get(name)) is None:
            raise NotFound(name)
        token = secrets.token_hex(24)  # nothing that a command line could take for an option
        row = store_pb2.JoinTokenRow(sha256=_digest(token)).SerializeToString()
        lease = await self.store.etcd.grant(life)
        await self.store.etcd.txn((), [put(self.store.keys.join_token(host.uid), row, lease)])
        return host_pb2.CreateJoinTokenResponse(
            token=token, expire_time=timestamp(time.time() + life), ca_sha256=fingerprint(ca.cert_pem)
        )

    def renew(self, request: host_pb2.RenewCertificateRequest, role: str) -> host_pb2.RenewCertificateResponse:
        """A certificate for a role that the caller has already."""
        ca = self._authority()
        return host_pb2.RenewCertificateResponse(certificate_pem=_signed(ca, request.csr_pem, role), ca_pem=ca.cert_pem)

    def _authority(self) -> Ca:
        if self.ca is None:
            text = "this controller has no CA key (setting ca_key): bring the host's certificate yourself"
            raise FailedPrecondition(text, reason="PKI_EXTERNAL")
        return self.ca


class JoinService(host_pb2_grpc.JoinServiceServicer):
    """Its callers have no certificate: served on a listener of its own."""

    def __init__(self, store: Store, ca: Ca) -> None:
        self.store, self.ca = store, ca

    async def Join(self, request: host_pb2.JoinRequest, context: Any) -> host_pb2.JoinResponse:
        """A certificate for the key of the request, for a token."""
        host = self.store.world.hosts.rows.get(f"hosts/{request.host_id}")
        if host is None:
            await self.store.barrier()
            host = self.store.world.hosts.rows.get(f"hosts/{request.host_id}")
        if host is None or host.spec.fenced:
            raise _refused()
        row = await self._row(host, request.token)
        cert = _signed(self.ca, request.csr_pem, f"host/{names.short(host.name)}")
        key = self.store.keys.join_token(host.uid)
        used = await self.store.etcd.txn([value_is(key, row)], [delete(key)])
        if not used.succeeded:
            raise _refused()
        return host_pb2.JoinResponse(certificate_pem=cert, ca_pem=self.ca.cert_pem)

    async def _row(self, host: Intent[HostSpec], token: str) -> bytes:
        """The stored row of the host's token, if that is the one. Raises PermissionDenied."""
        page = await self.store.etcd.range(self.store.keys.join_token(host.uid))
        for kv in page.kvs:
            if hmac.compare_digest(store_pb2.JoinTokenRow.FromString(kv.value).sha256, _digest(token)):
                return kv.value
        raise _refused()


def _signed(ca: Ca, csr_pem: bytes, role: str) -> bytes:
    """A certificate for the key of a signing request. Raises Invalid."""
    if len(csr_pem) > _LARGEST_CSR:
        raise invalid("csr_pem", f"at most {_LARGEST_CSR} bytes")
    try:
        return ca.sign_csr(csr_pem, role)
    except PkiError as error:
        raise invalid("csr_pem", str(error)) from error


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _refused() -> PermissionDenied:
    text = "no host of this name waits with this token; tokens are for one use, and expire"
    return PermissionDenied(text, reason="JOIN_REFUSED")
