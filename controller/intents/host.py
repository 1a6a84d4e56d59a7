"""Hosts: T0 create host, T5."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address

from controller import allocate, fields
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition, invalid
from controller.etcd.types import KeyValue
from controller.fields import Violations
from controller.intents.base import (
    Context,
    holder,
    holder_of,
    issued_of,
    new_uid,
    refuse_referenced,
    stamp,
    stored,
    take_number,
)
from controller.intents.tenant import begin_revocation, check_time
from controller.masks import OUTPUT, Policy
from controller.rows import HostSpec, Intent
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2


class Hosts:
    """Writer of hosts."""

    kind = "host"
    policy = Policy(output=OUTPUT | {"status"}, chosen=frozenset({"revoked_before"}))

    def __init__(self, context: Context) -> None:
        self.context = context

    def fields(self, message: host_pb2.Host, found: Violations) -> None:
        """Each field by itself; puts the VTEP into canonical form."""
        fields.common(message, found)
        if message.vtep and (vtep := fields.address(message.vtep, "vtep", found)):
            message.vtep = str(vtep)
        check_time(message.revoked_before, "revoked_before", found)

    def create(self, draft: Draft, name: str, message: host_pb2.Host) -> None:
        """T0: number and VTEP are unique."""
        uid = new_uid()
        if message.fenced:
            raise invalid("host.fenced", "is set by FenceHost only")
        message.name = name
        stamp(message, draft.now, created=draft.now)
        begin_revocation(message)
        world = draft.reading.world
        number = take_number(
            draft,
            "host number",
            span=(1, allocate.LAST_HOST_NUMBER),
            used=lambda n: bool(world.hosts_by_number.keys(n)),
            key_of=draft.keys.host_number,
            value=holder(name, uid),
            rng=self.context.rng,
        )
        if message.vtep:
            self._claim_vtep(draft, message.vtep, name=name, uid=uid)
        draft.create("host", name, stored(message, uid=uid, issued=store_pb2.Issued(host_number=number)))

    def update(self, draft: Draft, row: Intent[HostSpec], message: host_pb2.Host) -> None:
        """A VTEP that changes is claimed and given up. A fence may be lifted here, but not set."""
        if message.fenced and not row.spec.fenced:
            raise invalid("host.fenced", "is set by FenceHost only")
        self.replace(draft, row, message)

    def replace(self, draft: Draft, row: Intent[HostSpec], message: host_pb2.Host) -> None:
        """As `update`, also for FenceHost."""
        begin_revocation(message)
        stamp(message, draft.now)
        old = row.spec.vtep
        new = ip_address(message.vtep) if message.vtep else None
        if old != new:
            if old is not None:
                draft.delete(draft.keys.vtep(old))
            if new is not None:
                self._claim_vtep(draft, message.vtep, name=row.name, uid=row.uid)
        draft.replace("host", row, message=message)

    def delete(self, draft: Draft, row: Intent[HostSpec]) -> None:
        """T5: only without ports. Tombstones of the host are released by the chore leader."""
        refuse_referenced(draft, row.name, kind="host", uid=row.uid)
        draft.remove("host", row)
        draft.delete(draft.keys.host_number(issued_of(row).host_number))
        draft.delete(draft.keys.host_status(row.uid))
        draft.delete(draft.keys.join_token(row.uid))
        if row.spec.vtep is not None:
            draft.delete(draft.keys.vtep(row.spec.vtep))

    def _claim_vtep(self, draft: Draft, vtep: str, *, name: str, uid: str) -> None:
        draft.claim(draft.keys.vtep(ip_address(vtep)), holder(name, uid), refuse=_vtep_taken(vtep))


def _vtep_taken(vtep: str) -> Callable[[KeyValue], FailedPrecondition]:
    def refuse(found: KeyValue) -> FailedPrecondition:
        other = holder_of(found).name
        blocker = Blocker("VTEP_IN_USE", other, f"{vtep} is the tunnel address of {other}")
        return FailedPrecondition(blocker.text, [blocker], reason="VTEP_IN_USE")

    return refuse
