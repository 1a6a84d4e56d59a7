"""HostService: standard methods, and what an admin does about a host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog
from google.protobuf import empty_pb2
from google.protobuf.timestamp_pb2 import Timestamp

from controller import names
from controller.admission import FOREIGN_HISTORY
from controller.api.join import Tokens
from controller.api.reads import Parts
from controller.api.standard import Standard, row_of
from controller.caller import current_caller
from controller.draft import Draft
from controller.errors import NotFound
from controller.hosts import edit_host_status
from controller.intents.base import stored_message
from controller.intents.host import Hosts
from controller.rows import HostSpec, Intent
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, host_pb2_grpc

log = structlog.get_logger()


class HostService(host_pb2_grpc.HostServiceServicer):
    """For admins; tenants see the hosts that they may place on."""

    def __init__(self, parts: Parts, tokens: Tokens) -> None:
        self.parts, self.world, self._tokens = parts, parts.store.world, tokens
        self._writer = Hosts(parts.context)
        self._standard: Standard[host_pb2.Host] = Standard(parts, self._writer)

    async def CreateHost(self, request: host_pb2.CreateHostRequest, context: Any) -> host_pb2.Host:
        """Its number is issued here."""
        return await self._standard.create(request)

    async def GetHost(self, request: host_pb2.GetHostRequest, context: Any) -> host_pb2.Host:
        """One host."""
        return await self._standard.get(request)

    async def ListHosts(self, request: host_pb2.ListHostsRequest, context: Any) -> host_pb2.ListHostsResponse:
        """All that the caller may see."""
        return await self._standard.list(request, host_pb2.ListHostsResponse())

    async def UpdateHost(self, request: host_pb2.UpdateHostRequest, context: Any) -> host_pb2.Host:
        """VTEP, labels, drained; lifts a fence."""
        return await self._standard.update(request)

    async def DeleteHost(self, request: host_pb2.DeleteHostRequest, context: Any) -> empty_pb2.Empty:
        """Refused while it has ports."""
        await self._standard.delete(request)
        return empty_pb2.Empty()

    async def FenceHost(self, request: host_pb2.FenceHostRequest, context: Any) -> host_pb2.Host:
        """From now on the host counts as gone, whatever it does."""

        def fence(message: host_pb2.Host, now: Timestamp) -> None:
            message.fenced = True
            message.revoked_before.CopyFrom(Timestamp(seconds=max(now.seconds, message.revoked_before.seconds)))

        return await self._change(request.name, fence, is_done=lambda spec: spec.fenced, reason="Fenced")

    async def DrainHost(self, request: host_pb2.DrainHostRequest, context: Any) -> host_pb2.DrainHostResponse:
        """No new ports; those still there are named."""

        def drain(message: host_pb2.Host, _: Timestamp) -> None:
            message.drained = True

        host = await self._change(request.name, drain, is_done=lambda spec: spec.drained, reason="Drained")
        return host_pb2.DrainHostResponse(host=host, ports=sorted(self.world.ports_by_host.keys(host.name)))

    async def AcceptHost(self, request: host_pb2.AcceptHostRequest, context: Any) -> host_pb2.AcceptHostResponse:
        """Hosts of another history, or with unaccounted ports, may go on from this revision."""
        if request.name == f"hosts/{names.ANY}":
            accepted = [name for name in sorted(self.world.hosts.rows) if self._waits(name)]
        else:
            accepted = [names.check_name("host", request.name, "name")]
        if any(name not in self.world.hosts.rows for name in accepted):
            await self.parts.store.barrier()
        store = self.parts.store
        for name in accepted:
            row = self.world.hosts.rows.get(name)
            if row is None:
                raise NotFound(name)
            revision = await store.etcd.revision()

            def accept(status: store_pb2.HostStatusRow, revision: int = revision) -> None:
                status.accepted = revision

            await edit_host_status(store.etcd, store.keys, row.uid, accept)
            note = self.parts.notes.events.note
            await note(name=name, uid=row.uid, reason="Accepted", text="may go on", actor=current_caller().role)
        return host_pb2.AcceptHostResponse(hosts=accepted)

    async def CreateJoinToken(
        self, request: host_pb2.CreateJoinTokenRequest, context: Any
    ) -> host_pb2.CreateJoinTokenResponse:
        """For `teal-agent join` on the host itself, once."""
        return await self._tokens.create(request)

    async def RenewCertificate(
        self, request: host_pb2.RenewCertificateRequest, context: Any
    ) -> host_pb2.RenewCertificateResponse:
        """By the host itself, before its certificate ends."""
        return self._tokens.renew(request, current_caller().identity.role)

    def _waits(self, name: str) -> bool:
        status = self.world.host_status.rows.get(self.world.hosts.rows[name].uid)
        return status is not None and (status.state == FOREIGN_HISTORY or bool(status.unaccounted))

    async def _change(
        self,
        name: str,
        change: Callable[[host_pb2.Host, Timestamp], None],
        *,
        is_done: Callable[[HostSpec], bool],
        reason: str,
    ) -> host_pb2.Host:
        """An update that is not the caller's to word."""
        names.check_name("host", name, "name")
        before: list[Intent[HostSpec]] = []

        def build(draft: Draft) -> None:
            row = self._standard.row(draft, name)
            before[:] = [row]
            if is_done(row.spec):
                return
            message = stored_message(row, "host")
            change(message, draft.now)
            self._writer.replace(draft, row, message)

        caller = current_caller()
        noted = await self.parts.notes.noting(build, reason=reason)
        committed = await self.parts.committer.commit(noted, patience=caller.time_left)
        row = row_of(committed.written[0], committed.revision, self.parts.store) if committed.written else before[0]
        host: host_pb2.Host = self.parts.presenter.message("host", row, caller)
        return host
