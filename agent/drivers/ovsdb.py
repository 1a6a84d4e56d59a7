"""Bridges and ports of Open vSwitch, through OVSDB. Layer ovsdb.

Keys are ("bridge", name) → Bridge and ("port", device) → OvsPort | Tunnel. `read` answers from a replica that
ovsdb-server keeps up to date, so it costs no round trip; a batch is one transaction, because vswitchd reconfigures a
whole bridge for each change.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import structlog

from agent.drivers.base import DeviceUnavailable, Failure
from agent.drivers.coming import Coming
from agent.drivers.ovsdb_rows import Key, PortRow, Value, View, as_bridge, as_value, plan, reconfigure, view
from agent.drivers.ovsdb_rpc import Json, Replica, Session, TransactionError
from agent.drivers.vswitchd import OLDEST, VswitchdWatch
from agent.objects import Bridge

log = structlog.get_logger()

DEFAULT_SOCKET = "unix:/run/openvswitch/db.sock"
DEFAULT_RUN_DIR = "/run/openvswitch"
APPLY_TIMEOUT = 10.0  # seconds for vswitchd to carry out a transaction; 500 ports take it 0.5 s
CONFIGURATION = frozenset({("Open_vSwitch", "cur_cfg"), ("Open_vSwitch", "next_cfg")})
ZONE_TABLES = frozenset({"Datapath", "CT_Zone", "CT_Timeout_Policy"})


@dataclass(frozen=True, slots=True)
class OvsFacts:
    """What Open vSwitch says about itself. While `connected` is False the rest is as last known.

    `generation` grows whenever `read()` may answer differently: compare again; `zones` whenever what it says of
    conntrack zones may have changed. `vswitchd_starts` grows with each vswitchd process: conntrack of a netdev datapath
    is gone and all flows with it.
    """

    connected: bool = False  # ovsdb-server answers and the replica is complete
    connections: int = 0  # grows with each connection to ovsdb-server
    vswitchd_up: bool = False
    vswitchd_starts: int = 0
    too_old: str = ""  # the version of Open vSwitch, if it is one that this agent does not work with
    generation: int = 0
    zones: int = 0
    ofports: Mapping[str, int] = field(default_factory=dict)  # our ports that have one, by device
    used_ofports: frozenset[int] = frozenset()  # taken or asked for in our bridges, by ours and foreign ports
    foreign_ports: frozenset[str] = frozenset()  # names of all OVS interfaces that are neither ours nor our bridges
    datapath_types: frozenset[str] = frozenset()  # what vswitchd was built with: "netdev", "system"
    ovs_version: str = ""


class OvsdbDriver:
    """The driver of layer ovsdb. `run` keeps the connection; `read` and `apply` raise DeviceUnavailable without it.

    `socket` is "unix:<path>", `run_dir` is where vswitchd keeps its pid file and control socket.
    """

    def __init__(
        self, socket: str = DEFAULT_SOCKET, *, run_dir: str = DEFAULT_RUN_DIR, oldest: tuple[int, int] = OLDEST
    ) -> None:
        self._path = socket.removeprefix("unix:")
        self._oldest = oldest
        self._vswitchd = VswitchdWatch(run_dir, on_change=self._notify, oldest=oldest)
        self._session: Session | None = None
        self._connections = 0
        self._generation = self._zones = 0
        self._view: View | None = None
        self._facts = OvsFacts()
        self._last_ofports: dict[str, int] = {}  # by uuid of the interface
        self._confirmed = (0, 0)  # the (connection, vswitchd) that an apply has waited for
        self._leaving: dict[str, int] = {}  # ports deleted from the database → configuration without them
        self._changed: asyncio.Event = asyncio.Event()

    async def run(self) -> None:
        """Stay connected for ever; cancel to stop."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._vswitchd.run(), name="vswitchd-watch")
            tasks.create_task(self._stay_connected(), name="ovsdb-connection")

    def facts(self) -> OvsFacts:
        """What is known now."""
        self._refresh()
        return self._facts

    async def changes(self) -> AsyncIterator[OvsFacts]:
        """Yield the facts now and whenever they change; what changes while the consumer is busy is one change."""
        last: OvsFacts | None = None
        while True:
            event = self._changed
            facts = self.facts()
            if facts != last:
                last = facts
                yield facts
            else:
                await event.wait()

    def members(self, bridge: str) -> frozenset[str]:
        """The other interfaces in an OVS bridge, whosever; empty if there is no such bridge (or no connection)."""
        if self._session is None:
            return frozenset()
        seen = self._seen()
        names = {name for name, port in seen.interfaces.items() if seen.ports[port].bridge == bridge}
        return frozenset(names - {bridge})

    def refusal(self) -> str:
        """Why nothing of this Open vSwitch is read or written; "" if there is no such reason."""
        needed = ".".join(map(str, self._oldest))
        old = self._vswitchd.too_old
        return f"Open vSwitch {old} is too old: this agent works with {needed} and newer" if old else ""

    async def read(self) -> dict[Key, Value]:
        """Our bridges and ports. One that is not as we would write it has ofport 0 or datapath_type ""."""
        self._refuse()
        seen = self._seen()
        out: dict[Key, Value] = {("bridge", b.name): as_bridge(b) for b in seen.bridges.values() if b.ours}
        out |= {("port", p.name): as_value(p, self._ofport(p)) for p in seen.ports.values() if p.ours}
        return out

    async def apply(self, write: Mapping[Key, Value], delete: Collection[Key]) -> Mapping[Key, Failure]:
        """One transaction. Returns after vswitchd has carried out the writes; deletions alone are not waited for.

        Reasons: ForeignBridge, ForeignPort (somebody's is in the way), BridgeMissing, OvsRefused (by ovsdb-server),
        OvsPortError and OvsBridgeError (vswitchd could not open the device, make the bridge), OfportMismatch (the
        number is taken by another port), OvsNotApplied (not within the time), OvsChanged (somebody changed the row
        meanwhile).
        """
        failures = await self._commit(write, delete)
        waiting = {key: value for key, value in write.items() if key not in failures}
        failures |= {key: failure for key, value in waiting.items() if (failure := self._judge(key, value)) is not None}
        return failures

    def replica(self) -> Replica:
        """The rows of OVSDB that we follow."""
        return self._connected().replica

    def _refuse(self) -> None:
        if why := self.refusal():
            raise DeviceUnavailable(why)

    async def transact(self, operations: Sequence[Json]) -> None:
        """One transaction of somebody else's. Raises TransactionError, DeviceUnavailable."""
        self._refuse()
        await self._connected().transact(operations)

    async def let_go(self, devices: Collection[str]) -> None:
        """Return when vswitchd, if it runs, holds none of these devices of which the ports have been deleted.

        Raises DeviceUnavailable.
        """
        target = max((self._leaving.get(device, 0) for device in devices), default=0)
        with suppress(TimeoutError):
            async with asyncio.timeout(APPLY_TIMEOUT):
                while (event := self._changed) and self._vswitchd.up and self._number("cur_cfg") < target:
                    await event.wait()
        self._leaving = {name: number for name, number in self._leaving.items() if number > self._number("cur_cfg")}

    async def default(self, key: str, value: str) -> None:
        """Set other_config:`key` of Open vSwitch as a whole, unless somebody has set it (RFC 7047, 5.1, mutate)."""
        mutation = ["other_config", "insert", ["map", [[key, value]]]]
        operation = {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [mutation]}
        try:
            await self._connected().transact([operation])
        except TransactionError as error:
            log.warning("default not set", key=key, error=str(error))

    # -- one transaction

    async def _commit(self, write: Mapping[Key, Value], delete: Collection[Key]) -> dict[Key, Failure]:
        """Transact and wait. A refused batch is tried again key by key, so that one bad key fails alone."""
        try:
            return await self._transact(write, delete)
        except TransactionError as error:
            if len(write) + len(delete) == 1:
                return {key: Failure("OvsRefused", str(error)) for key in (*write, *delete)}
        failures: dict[Key, Failure] = {}
        ordered = sorted(write.items(), key=lambda item: item[0])  # "bridge" sorts before "port"
        for key, value in ordered:
            failures |= await self._commit({key: value}, ())
        for key in delete:
            failures |= await self._commit({}, (key,))
        return failures

    async def _transact(self, write: Mapping[Key, Value], delete: Collection[Key]) -> dict[Key, Failure]:
        self._refuse()
        session, seen = self._connected(), self._seen()
        if seen.root is None:
            raise DeviceUnavailable("the Open_vSwitch table is empty: ovs-vsctl init was never run")
        planned = plan(seen, write, delete)
        wanted = {key: value for key, value in write.items() if key not in planned.failures}
        # vswitchd does not retry a port that failed until something else changes: ask it to. And what cur_cfg said
        # before a restart says nothing about the new process.
        parties = (self._connections, self._vswitchd.starts)
        stale = self._confirmed != parties or any(self._judge(key, value) is not None for key, value in wanted.items())
        target = self._number("cur_cfg")
        if planned.operations or (wanted and stale):
            results = await session.transact([*planned.operations, *reconfigure(seen.root)])
            target = results[-1]["rows"][0]["next_cfg"]
            self._leaving |= {name: target for kind, name in delete if kind == "port"}
        if wanted and await self._settled(target, wanted):
            self._confirmed = parties
        return planned.failures

    async def _settled(self, target: int, wanted: Mapping[Key, Value]) -> bool:
        """Wait until vswitchd has seen configuration `target` and every wanted port has an ofport or an error.

        False if that took too long: then each key is judged by what there is.
        """
        names = [name for _, name in wanted]  # a bridge has a local port of its name
        try:
            async with asyncio.timeout(APPLY_TIMEOUT):
                while True:
                    event = self._changed
                    if self._number("cur_cfg") >= target and all(self._has_result(name) for name in names):
                        return True
                    if not self._vswitchd.up:
                        raise DeviceUnavailable("ovs-vswitchd is down")
                    await event.wait()
        except TimeoutError:
            return False

    def _has_result(self, name: str) -> bool:
        port = self._seen().ports.get(name)
        if port is None or port.interface is None:
            return True
        return port.interface["ofport"] is not None or port.interface["error"] is not None

    def _judge(self, key: Key, value: Value) -> Failure | None:
        """Why `value` is not in place, None if it is."""
        seen = self._seen()
        if isinstance(value, Bridge):
            bridge = seen.bridges.get(value.name)
            if bridge is None or not bridge.ours or as_bridge(bridge) != value:
                return Failure("OvsChanged", "the bridge is not as it was written")
            local = seen.ports.get(value.name)  # vswitchd tells of a bridge by its local port
            if local is None or local.interface is None or not self._ofport(local):
                return Failure("OvsNotApplied", "vswitchd has not made the bridge")
            error = local.interface["error"]
            return None if error is None else Failure("OvsBridgeError", error)
        port = seen.ports.get(key[1])
        if port is None or not port.ours or port.interface is None:
            return Failure("OvsChanged", "the port is gone")
        ofport, error = self._ofport(port), port.interface["error"]
        if error is not None or ofport == -1:
            return Failure("OvsPortError", error or "vswitchd could not add the port")
        if ofport is None:
            return Failure("OvsNotApplied", "vswitchd has not given the port a number yet")
        if as_value(port, ofport) == value:
            return None
        if port.interface["ofport_request"] == value.ofport != ofport:
            return Failure("OfportMismatch", f"wanted OpenFlow port {value.ofport}, got {ofport}")
        return Failure("OvsChanged", "the port is not as it was written")

    # -- the replica

    def _connected(self) -> Session:
        if self._session is None:
            raise DeviceUnavailable(f"no connection to ovsdb-server at {self._path}")
        return self._session

    def _seen(self) -> View:
        self._connected()
        self._refresh()
        assert self._view is not None
        return self._view

    def _number(self, column: str) -> int:
        rows = self._connected().replica.tables["Open_vSwitch"]
        return max((row[column] for row in rows.values()), default=0)

    def _ofport(self, port: PortRow) -> int | None:
        """The port's number, -1 if vswitchd refused it. The last known while there is none: ofport is lost when
        ovsdb-server restarts and comes back when vswitchd has reconnected, seconds later, unchanged.
        """
        assert port.interface is not None
        ofport: int | None = port.interface["ofport"]
        return self._last_ofports.get(port.interface_uuid) if ofport is None else ofport

    def _refresh(self) -> None:
        """Bring view and facts up to date; cheap when nothing changed."""
        state: dict[str, Any] = {
            "connected": self._session is not None,
            "connections": self._connections,
            "vswitchd_up": self._vswitchd.up,
            "vswitchd_starts": self._vswitchd.starts,
            "too_old": self._vswitchd.too_old,
        }
        if self._session is not None and (self._view is None or self._facts.generation != self._generation):
            self._view = view(self._session.replica)
            state |= self._observe(self._session, self._view)
        if any(getattr(self._facts, name) != value for name, value in state.items()):
            self._facts = replace(self._facts, **state)

    def _observe(self, session: Session, seen: View) -> dict[str, Any]:
        interfaces = session.replica.tables["Interface"]
        known = {uuid: row["ofport"] for uuid, row in interfaces.items() if row["ofport"] is not None}
        kept = {uuid: number for uuid, number in self._last_ofports.items() if uuid in interfaces}
        self._last_ofports = kept | known
        ours = {port.name: port for port in seen.ports.values() if port.ours}
        known_names = set(ours) | {bridge.name for bridge in seen.bridges.values() if bridge.ours}
        ofports = {name: number for name, port in ours.items() if (number := self._ofport(port) or 0) > 0}
        root = next(iter(session.replica.tables["Open_vSwitch"].values()), None)
        return {
            "generation": self._generation,
            "zones": self._zones,
            "ofports": ofports,
            "used_ofports": self._used(seen),
            "foreign_ports": frozenset(name for name, port in seen.interfaces.items() if port not in known_names),
            "datapath_types": root["datapath_types"] if root is not None else frozenset(),
            "ovs_version": (root["ovs_version"] or "") if root is not None else "",
        }

    def _used(self, seen: View) -> frozenset[int]:
        session = self._connected()
        bridges = {bridge.name for bridge in seen.bridges.values() if bridge.ours}
        rows = session.replica.tables["Interface"]
        numbers: set[int | None] = set()
        for port in seen.ports.values():
            if port.bridge in bridges:
                for uuid in port.row["interfaces"]:
                    numbers |= {self._last_ofports.get(uuid), rows[uuid]["ofport_request"]}
        return frozenset(number for number in numbers if number is not None and 0 < number < 0xFF00)

    # -- the connection

    async def _stay_connected(self) -> None:
        attempt = 0
        while True:
            connections = self._connections
            with Coming(self._path) as coming:
                try:
                    await self._serve()
                except (OSError, DeviceUnavailable, TransactionError) as error:
                    if attempt == 0:
                        log.warning("ovsdb-server is out of reach", socket=self._path, error=str(error))
                attempt = 0 if self._connections > connections else attempt + 1
                if await coming.wait(attempt):
                    attempt = 0

    async def _serve(self) -> None:
        async with Session(self._path, on_update=self._on_update) as session:
            self._session = session
            self._connections += 1
            self._generation += 1
            self._notify()
            log.info("connected to ovsdb-server", socket=self._path, connections=self._connections)
            try:
                await session.closed()
            finally:
                self._session = None
                self._notify()

    def _on_update(self, touched: frozenset[tuple[str, str]]) -> None:
        if not touched <= CONFIGURATION:
            self._generation += 1
            self._zones += any(table in ZONE_TABLES for table, _ in touched)
        self._notify()

    def _notify(self) -> None:
        """Wake everybody who waits for a change; they look again and decide for themselves."""
        event, self._changed = self._changed, asyncio.Event()
        event.set()
