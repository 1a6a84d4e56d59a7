"""Our bridges and ports as OVSDB rows, and back. Pure; the columns are those of ovs-vswitchd.conf.db(5).

A row is ours by its mark, external_ids:tealnet ("1" on bridges, the port's uid on Port and Interface). A row that is
ours but not as we would write it reads as ofport 0 or datapath_type "": equal to nothing that anybody wants.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.base import Failure
from agent.drivers.ovsdb_rpc import COLUMNS, Json, Replica, Row, encode, references
from agent.objects import Bridge, Marks, OvsPort, Tunnel

MARK = Marks.OVS_EXTERNAL_ID
OFPORT = "tealnet-ofport"
TUNNEL_MARK = "tunnel"  # stands for the port's uid
# All versions, so that a plain ovs-ofctl works beside our OpenFlow 1.5 connection.
PROTOCOLS = frozenset(f"OpenFlow1{minor}" for minor in range(6))

Key = tuple[str, str]  # ("bridge", name) | ("port", device)
Value = Bridge | OvsPort | Tunnel


@dataclass(frozen=True, slots=True)
class PortRow:
    """A Port row with its Interface, as found. `interface` is None for a bond (never ours)."""

    name: str
    uuid: str
    bridge: str
    ours: bool
    row: Row
    interface_uuid: str
    interface: Row | None


@dataclass(frozen=True, slots=True)
class BridgeRow:
    """A Bridge row, as found."""

    name: str
    uuid: str
    ours: bool
    row: Row


@dataclass(frozen=True, slots=True)
class View:
    """The replica by name. `interfaces` are the names of all interfaces, with the port each belongs to."""

    root: str | None  # uuid of the one Open_vSwitch row
    bridges: Mapping[str, BridgeRow]
    ports: Mapping[str, PortRow]
    interfaces: Mapping[str, str]


def view(replica: Replica) -> View:
    """Sort the replica's rows by name; rows that no bridge refers to are about to vanish and are left out."""
    bridges: dict[str, BridgeRow] = {}
    ports: dict[str, PortRow] = {}
    owners: dict[str, str] = {}
    rows, interfaces = replica.tables["Port"], replica.tables["Interface"]
    for uuid, row in replica.tables["Bridge"].items():
        name = row["name"]
        bridges[name] = BridgeRow(name, uuid, MARK in row["external_ids"], row)
        for port_uuid in row["ports"]:
            port = rows[port_uuid]
            members = [interfaces[member] for member in port["interfaces"]]
            single = members[0] if len(members) == 1 else None
            marked = MARK in port["external_ids"] or (single is not None and MARK in single["external_ids"])
            ours = single is not None and single["name"] == port["name"] and marked
            interface_uuid = next(iter(port["interfaces"])) if single is not None else ""
            ports[port["name"]] = PortRow(port["name"], port_uuid, name, ours, port, interface_uuid, single)
            owners.update((member["name"], port["name"]) for member in members)
    root = next(iter(replica.tables["Open_vSwitch"]), None)
    return View(root, bridges, ports, owners)


def bridge_columns(bridge: Bridge) -> Row:
    """What a Bridge row of ours holds; maps may hold more."""
    return {
        "datapath_type": bridge.datapath_type,
        "fail_mode": "secure",
        "protocols": PROTOCOLS,
        # In-band control would put hidden flows before ours.
        "other_config": {"disable-in-band": "true"},
        "external_ids": {MARK: "1"},
    }


def port_columns(value: OvsPort | Tunnel) -> tuple[Row, Row]:
    """What the Port and Interface rows hold; external_ids may hold more."""
    interface: Row = {"ofport_request": value.ofport}
    if isinstance(value, Tunnel):
        mark = TUNNEL_MARK
        # No GBP option: on the userspace datapath of OVS 3.1 such a port breaks at the next reconfiguration.
        options = {"remote_ip": "flow", "key": "flow", "local_ip": value.local_ip, "dst_port": str(value.udp_port)}
        interface |= {"type": "vxlan", "options": options}
    else:
        mark = value.port_uid
        interface |= {"type": "", "options": {}}
    interface["external_ids"] = {MARK: mark, OFPORT: str(value.ofport)}
    return {"external_ids": {MARK: mark}}, interface


def differences(table: str, row: Row, wanted: Row) -> Row:
    """The columns of `wanted` that `row` does not hold. Foreign keys in external_ids and other_config are kept."""
    out: Row = {}
    for column, value in wanted.items():
        new = row[column] | value if column in ("external_ids", "other_config") else value
        # "system" is what vswitchd understands by an empty type, for bridges and interfaces alike.
        if new != row[column] and not (column in ("type", "datapath_type") and {new, row[column]} == {"", "system"}):
            out[column] = new
    return out


def as_value(port: PortRow, ofport: int | None) -> OvsPort | Tunnel:
    """The object that a port of ours stands for; `ofport` is the number it has, None if it has none."""
    assert port.interface is not None
    interface = port.interface
    if interface["type"] == "vxlan":
        udp_port = interface["options"].get("dst_port", "")
        value: OvsPort | Tunnel = Tunnel(
            bridge=port.bridge,
            name=port.name,
            ofport=ofport or 0,
            local_ip=interface["options"].get("local_ip", ""),
            udp_port=int(udp_port) if udp_port.isdecimal() else 0,
        )
    else:
        uid = interface["external_ids"].get(MARK, "")
        value = OvsPort(bridge=port.bridge, device=port.name, ofport=ofport or 0, port_uid=uid)
    if interface["error"] is None and not _port_differences(port, value):
        return value
    return _with_ofport_zero(value)


def as_bridge(bridge: BridgeRow) -> Bridge:
    """The object that a bridge of ours stands for."""
    value = Bridge(name=bridge.name, datapath_type=bridge.row["datapath_type"] or "system")
    if differences("Bridge", bridge.row, bridge_columns(value)):
        return Bridge(name=bridge.name, datapath_type="")
    return value


def _with_ofport_zero(value: OvsPort | Tunnel) -> OvsPort | Tunnel:
    if isinstance(value, Tunnel):
        return Tunnel(value.bridge, value.name, 0, value.local_ip, value.udp_port)
    return OvsPort(value.bridge, value.device, 0, value.port_uid)


def _port_differences(port: PortRow, value: OvsPort | Tunnel) -> tuple[Row, Row] | None:
    assert port.interface is not None
    wanted_port, wanted_interface = port_columns(value)
    changes = differences("Port", port.row, wanted_port), differences("Interface", port.interface, wanted_interface)
    return changes if any(changes) else None


@dataclass(slots=True)
class Plan:
    """The operations that bring rows to what is wanted, and the keys that cannot be."""

    operations: list[Json] = field(default_factory=list)
    failures: dict[Key, Failure] = field(default_factory=dict)


def plan(seen: View, write: Mapping[Key, Value], delete: Collection[Key]) -> Plan:
    """One transaction for all of it; nothing is planned for what is already so. `seen.root` must be there."""
    return _Planner(seen).run(write, delete)


class _Planner:
    def __init__(self, seen: View) -> None:
        self._seen = seen
        self._plan = Plan()
        self._new_bridges: dict[str, Row] = {}
        self._joins: dict[str, list[str]] = {}  # bridge → Port uuids
        self._leaves: dict[str, list[str]] = {}
        self._count = 0

    def run(self, write: Mapping[Key, Value], delete: Collection[Key]) -> Plan:
        for kind, name in delete:
            if kind == "port" and (port := self._seen.ports.get(name)) is not None and port.ours:
                self._leaves.setdefault(port.bridge, []).append(port.uuid)
        for key, value in write.items():  # bridges first: ports may be in them
            if isinstance(value, Bridge):
                self._bridge(key, value)
        for key, value in write.items():
            if not isinstance(value, Bridge):
                self._port(key, value)
        self._finish([name for kind, name in delete if kind == "bridge"])
        return self._plan

    def _bridge(self, key: Key, value: Bridge) -> None:
        found = self._seen.bridges.get(value.name)
        if found is None:
            self._new_bridges[value.name] = bridge_columns(value)
            self._insert_port(value.name, value.name, {}, {"type": "internal"})
        elif not found.ours:
            self._plan.failures[key] = Failure("ForeignBridge", f"a bridge {value.name} that is not ours is in the way")
        else:
            self._update("Bridge", found.uuid, differences("Bridge", found.row, bridge_columns(value)))

    def _port(self, key: Key, value: OvsPort | Tunnel) -> None:
        name = key[1]
        bridge = self._seen.bridges.get(value.bridge)
        found = self._seen.ports.get(name)
        if value.bridge not in self._new_bridges and (bridge is None or not bridge.ours):
            self._plan.failures[key] = Failure("BridgeMissing", f"no bridge {value.bridge} of ours")
            return
        if self._seen.interfaces.get(name, name) != name or (found is not None and not found.ours):
            self._plan.failures[key] = Failure("ForeignPort", f"an OVS port {name} that is not ours is in the way")
            return
        if found is not None and found.bridge == value.bridge:
            self._update_port(found, value)
            return
        if found is not None:
            self._leaves.setdefault(found.bridge, []).append(found.uuid)
        self._insert_port(value.bridge, name, *port_columns(value))

    def _update_port(self, found: PortRow, value: OvsPort | Tunnel) -> None:
        if (changes := _port_differences(found, value)) is not None:
            self._update("Port", found.uuid, changes[0])
            self._update("Interface", found.interface_uuid, changes[1])

    def _insert_port(self, bridge: str, name: str, port: Row, interface: Row) -> None:
        self._count += 1
        port_name, interface_name = f"p{self._count}", f"i{self._count}"
        self._insert("Interface", interface_name, _encoded("Interface", {"name": name} | interface))
        row = _encoded("Port", {"name": name} | port) | {"interfaces": references([f"@{interface_name}"])}
        self._insert("Port", port_name, row)
        self._joins.setdefault(bridge, []).append(f"@{port_name}")

    def _insert(self, table: str, name: str, row: Row) -> None:
        self._plan.operations.append({"op": "insert", "table": table, "uuid-name": name, "row": row})

    def _update(self, table: str, uuid: str, changes: Row) -> None:
        if changes:
            row = _encoded(table, changes)
            self._plan.operations.append({"op": "update", "table": table, "where": _is(uuid), "row": row})

    def _finish(self, gone: Iterable[str]) -> None:
        """What refers to the rows above: a row without a reference is collected, so this is what deletes, too."""
        for number, (name, columns) in enumerate(self._new_bridges.items()):
            row = _encoded("Bridge", {"name": name} | columns) | {"ports": references(self._joins.pop(name))}
            self._insert("Bridge", f"b{number}", row)
        fresh = [f"@b{number}" for number in range(len(self._new_bridges))]
        for verb, sets in (("delete", self._leaves), ("insert", self._joins)):
            for name, uuids in sets.items():
                self._mutate("Bridge", self._seen.bridges[name].uuid, "ports", verb, uuids)
        found = [self._seen.bridges[name] for name in gone if name in self._seen.bridges]
        assert self._seen.root is not None
        self._mutate("Open_vSwitch", self._seen.root, "bridges", "delete", [row.uuid for row in found if row.ours])
        self._mutate("Open_vSwitch", self._seen.root, "bridges", "insert", fresh)

    def _mutate(self, table: str, uuid: str, column: str, verb: str, uuids: list[str]) -> None:
        if uuids:
            mutation = [column, verb, references(uuids)]
            self._plan.operations.append({"op": "mutate", "table": table, "where": _is(uuid), "mutations": [mutation]})


def reconfigure(root: str) -> list[Json]:
    """Ask vswitchd to look at everything again; the second result says which cur_cfg means that it has."""
    where = _is(root)
    return [
        {"op": "mutate", "table": "Open_vSwitch", "where": where, "mutations": [["next_cfg", "+=", 1]]},
        {"op": "select", "table": "Open_vSwitch", "where": where, "columns": ["next_cfg"]},
    ]


def _is(uuid: str) -> Json:
    return [["_uuid", "==", ["uuid", uuid]]]


def _encoded(table: str, row: Mapping[str, Any]) -> dict[str, Json]:
    return {column: encode(COLUMNS[table][column], value) for column, value in row.items()}
