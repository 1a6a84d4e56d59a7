"""AdminService: backup of the store, its space and its alarms; the audit log; the check of everything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import structlog

from controller.audit.query import MOST, AuditQuery
from controller.check import Check
from controller.errors import invalid
from controller.etcd import Etcd, StoreError, Tls
from controller.etcd.types import Alarm
from controller.fields import Violations
from controller.intents.tenant import check_time
from controller.names import kind_of
from tealnet.v1 import admin_pb2, admin_pb2_grpc

log = structlog.get_logger()

_CHECK, _LONGEST = 10.0, 60.0  # seconds for hosts
_PATIENCE = 3.0  # seconds for the answers of other replicas


@dataclass(frozen=True, slots=True)
class AdminStore:
    """An etcd; `endpoints` are those of all members, each of which is defragmented by itself."""

    etcd: Etcd
    endpoints: Sequence[str]
    tls: Tls | None


class AdminService(admin_pb2_grpc.AdminServiceServicer):
    """The methods; raise ApiError and StoreError."""

    def __init__(self, store: AdminStore, *, audits: AuditQuery, check: Check) -> None:
        self.etcd, self.endpoints, self.tls = store.etcd, list(store.endpoints), store.tls
        self.audits, self.check = audits, check

    async def Backup(self, request: admin_pb2.BackupRequest, context: Any) -> AsyncIterator[admin_pb2.BackupResponse]:
        """All parts in order; the stream fails rather than end early."""
        size = 0
        async for part in self.etcd.snapshot_parts():
            size += len(part)
            yield admin_pb2.BackupResponse(part=part)
        log.info("backup taken", bytes=size)

    async def Defragment(self, request: admin_pb2.DefragmentRequest, context: Any) -> admin_pb2.DefragmentResponse:
        """A member serves nothing meanwhile, so they take turns. Both work also while the store takes no writes."""
        if request.compact:
            await self.etcd.compact(await self.etcd.revision())
        return admin_pb2.DefragmentResponse(members=[await self._defragment(one) for one in self.endpoints])

    async def _defragment(self, endpoint: str) -> admin_pb2.DefragmentedMember:
        member = admin_pb2.DefragmentedMember(endpoint=endpoint)
        try:
            async with Etcd([endpoint], self.tls) as etcd:
                member.before_bytes = (await etcd.status()).db_size
                await etcd.defragment()
                member.after_bytes = (await etcd.status()).db_size
        except StoreError as error:
            member.error = str(error)
        log.info("defragmented", endpoint=endpoint, error=member.error)
        return member

    async def ListAlarms(self, request: admin_pb2.ListAlarmsRequest, context: Any) -> admin_pb2.ListAlarmsResponse:
        """Those that are on."""
        return admin_pb2.ListAlarmsResponse(alarms=map(_alarm, await self.etcd.alarms()))

    async def DisarmAlarms(
        self, request: admin_pb2.DisarmAlarmsRequest, context: Any
    ) -> admin_pb2.DisarmAlarmsResponse:
        """All of them."""
        found = await self.etcd.alarms()
        for alarm in found:
            await self.etcd.disarm(alarm)
        return admin_pb2.DisarmAlarmsResponse(alarms=map(_alarm, found))

    async def ListAudit(self, request: admin_pb2.ListAuditRequest, context: Any) -> admin_pb2.ListAuditResponse:
        """The newest entries of all replicas."""
        if not 0 <= request.page_size <= MOST:
            raise invalid("page_size", f"between 0 (the default) and {MOST}")
        if request.name and not kind_of(request.name):
            raise invalid("name", f"{request.name[:200]!r} is not a resource name like tenants/TENANT")
        found = Violations()
        check_time(request.after, "after", found)
        check_time(request.before, "before", found)
        found.finish()
        return await self.audits.ask(request, timeout=_PATIENCE)

    async def Check(self, request: admin_pb2.CheckRequest, context: Any) -> admin_pb2.CheckResponse:
        """Of the store and of all hosts, with repairs if they are asked for."""
        given = request.timeout.seconds + request.timeout.nanos / 1e9
        timeout = given if request.HasField("timeout") else _CHECK
        if not 0 <= timeout <= _LONGEST:
            raise invalid("timeout", f"between 0 and {_LONGEST:.0f} seconds")
        return await self.check.run(request, timeout=timeout)


def _alarm(alarm: Alarm) -> admin_pb2.StoreAlarm:
    return admin_pb2.StoreAlarm(member=f"{alarm.member_id:x}", kind=alarm.kind.value)
