"""Everything of the watched range that is not an intent: where a key belongs, and its value as a row.

The edge of the store: what does not parse raises ValueError (or protobuf's DecodeError) and is absent for all others.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from controller.etcd.types import KeyValue
from controller.keys import COLLECTIONS, OWNED
from controller.rows import IdentityRow, PortStatusEntry, SessionEntry, Term, TombstoneRow
from tealnet.store.v1 import store_pb2

Place = tuple[str, Hashable]  # (name of a table of World, key in it)

INTENTS = {kind: f"{kind}s" for kind in (*COLLECTIONS, "split")}
"""The table of each kind of intent."""


def intent_name(kind: str, parts: tuple[str, ...]) -> str:
    """The resource name of an intent's key: ("port", ("acme", "p")) → tenants/acme/ports/p."""
    if kind not in (*OWNED, "split"):
        (own,) = parts
        return f"{COLLECTIONS[kind]}/{own}"
    tenant, own = parts
    if kind == "split":
        return f"tenants/{tenant}/networks/{own}/trafficSplit"
    return f"tenants/{tenant}/{COLLECTIONS[kind]}/{own}"


def place(relative: str) -> Place | None:
    """The table and key of a watched key (`w/…`), None for what tables do not hold. Raises ValueError."""
    match tuple(relative.split("/"))[1:]:
        case ("o", kind, *rest) if kind in INTENTS:
            return INTENTS[kind], intent_name(kind, tuple(rest))
        case ("n", "identity", number):
            return "identities", int(number)
        case ("g", "domain", router_uid):
            return "guards", router_uid
        case ("t", host_uid, port_uid):
            return "tombstones", (host_uid, port_uid, "")
        case ("t", host_uid, port_uid, address):
            return "tombstones", (host_uid, port_uid, address)
        case ("s", "port", uid):
            return "port_status", uid
        case ("s", "host", uid):
            return "host_status", uid
        case ("s", "rollout", uid, replica):
            return "rollout_reports", (uid, replica)
        case ("s", "step", uid, step):
            return "rollout_steps", (uid, int(step))
        case ("s", "replica", replica):
            return "replicas", replica
        case ("h", host_uid):
            return "sessions", host_uid
        case ("b", "beat", _):
            return None
        case ("b", barrier):
            return "barriers", barrier
        case ("b", barrier, replica):
            return "answers", (barrier, replica)
        case ("l", "confirm", uid):
            return "confirmations", uid
        case ("l", "chores"):
            return "terms", "chores"
        case ("m", "lineage", number):
            return "lineages", int(number)
        case _:
            return None


def _identity(kv: KeyValue, _: Any) -> IdentityRow:
    message = store_pb2.Identity.FromString(kv.value)
    return IdentityRow((message.tenant_uid, *message.group_uids), kv.create_revision)


def _tombstone(kv: KeyValue, key: tuple[str, str, str]) -> TombstoneRow:
    message = store_pb2.Tombstone.FromString(kv.value)
    return TombstoneRow(
        host_uid=key[0],
        port_uid=key[1],
        address=key[2],
        port_name=message.port_name,
        reason=message.reason,
        moved_to=message.moved_to,
        network_uid=message.network_uid,
        address_keys=tuple(message.address_keys),
        quarantine=message.quarantine_seconds,
        acked=message.acked,
        revision=kv.create_revision,
        due=message.due,
        since=message.time.seconds + message.time.nanos / 1e9,
        domain=message.domain,
    )


def _port_status(kv: KeyValue, _: Any) -> PortStatusEntry:
    message = store_pb2.PortStatusRow.FromString(kv.value)
    return PortStatusEntry(
        host_uid=message.host_uid,
        applied=message.applied,
        tried=message.tried,
        reason=message.reason,
        text=message.text,
        since=message.since.seconds + message.since.nanos / 1e9,
        policy=message.policy,
        device=message.device,
    )


def _session(kv: KeyValue, _: Any) -> SessionEntry:
    message = store_pb2.Session.FromString(kv.value)
    return SessionEntry(message.replica, message.session, message.instance_uid)


_ROWS: dict[str, Callable[[KeyValue, Any], Any]] = {
    "identities": _identity,
    "guards": lambda kv, _: kv.mod_revision,
    "tombstones": _tombstone,
    "port_status": _port_status,
    "host_status": lambda kv, _: store_pb2.HostStatusRow.FromString(kv.value),
    "rollout_reports": lambda kv, _: store_pb2.RolloutReport.FromString(kv.value),
    "rollout_steps": lambda kv, _: store_pb2.RolloutStepRow.FromString(kv.value),
    "confirmations": lambda kv, _: kv.create_revision,
    "replicas": lambda kv, _: store_pb2.ReplicaRow.FromString(kv.value),
    "sessions": _session,
    "barriers": lambda kv, _: store_pb2.Barrier.FromString(kv.value),
    "answers": lambda kv, _: store_pb2.BarrierAnswer.FromString(kv.value),
    "terms": lambda kv, _: Term(kv.value.decode(), kv.create_revision),
    "lineages": lambda kv, _: store_pb2.LineageRow.FromString(kv.value).id,
}


def row(table: str, key: Hashable, kv: KeyValue) -> Any:
    """The row of a value, for a place that `place` gave; not for intents. Raises ValueError or DecodeError."""
    return _ROWS[table](kv, key)
