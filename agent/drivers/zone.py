"""Conntrack zones of the datapath: how many connections each may hold, and how long silent UDP is remembered.

Layer zone. Key: number → Zone. The limit is vswitchd's and is lost with its process (ovs-vswitchd(8), dpctl); the
timeout is in OVSDB: all zones with the same one share a row of ours in CT_Zone (ovs-vswitchd.conf.db(5)).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, replace

from agent.connections import Connection, parse
from agent.drivers.base import DeviceUnavailable, Failure
from agent.drivers.ovsdb import OvsdbDriver
from agent.drivers.ovsdb_rpc import Json, Replica, TransactionError
from agent.drivers.unixctl import UnixctlError, unixctl
from agent.drivers.vswitchd import control_socket
from agent.objects import Marks, Zone

MARK = Marks.OVS_EXTERNAL_ID
_LIMIT = re.compile(r"zone=(\d+),limit=(\d+),count=(\d+)")
_UDP = ("udp_first", "udp_single", "udp_multiple")
_CLOSED_TCP = 10  # seconds; the default of 30 lets closed connections fill a busy port's zone
_AT_ONCE = 500  # zones in one command
_FEW = 32  # zones that are asked for one by one


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a zone is."""

    limit: int
    count: int


class ZoneDriver:
    """The driver of layer zone. `datapath` is "netdev" or "system".

    `issued` are the numbers that this agent has given to ports, whether they are plugged just now or not. `forget`
    empties zones that nobody follows any more: what they hold would get out of date.
    """

    def __init__(
        self,
        ovsdb: OvsdbDriver,
        *,
        run_dir: str,
        datapath: str,
        issued: Callable[[], Collection[int]],
        forget: Callable[[Collection[int]], Awaitable[None]],
    ) -> None:
        self._ovsdb, self._run_dir, self._datapath = ovsdb, run_dir, datapath
        self._issued, self._forget = issued, forget
        self._name = f"{datapath}@ovs-{datapath}"

    async def read(self) -> dict[int, Zone]:
        """Zones with a limit or timeout of ours. Zones are ours by their number: one issued, or of an OVS port of ours.

        A zone outlives its port's row, which somebody may delete, and so does what we have set there.
        """
        ours = {*self._issued(), *self._ovsdb.facts().ofports.values()}
        timeouts = _timeouts(self._ovsdb.replica(), self._datapath)
        zones = {number: Zone(number, 0, timeout) for number, timeout in timeouts.items()}
        for number, usage in (await self.usage()).items():
            if number in zones or number in ours:
                zones[number] = replace(zones.get(number, Zone(number, 0)), limit=usage.limit)
        return zones

    async def apply(self, write: Mapping[int, Zone], delete: Collection[int]) -> Mapping[int, Failure]:
        """Reasons: ZoneLimit (vswitchd refused), ZoneTimeout (ovsdb-server did), OvsChanged (somebody was faster)."""
        failures = await self._set_timeouts(write, delete)
        limited = {number: zone.limit for number, zone in write.items() if zone.limit}
        unlimited = [*delete, *(number for number in write if number not in limited)]
        try:
            for part in _parts([f"zone={number},limit={limit}" for number, limit in limited.items()]):
                await self._dpctl("ct-set-limits", *part)
            for part in _parts([str(number) for number in unlimited]):
                await self._dpctl("ct-del-limits", f"zone={','.join(part)}")
            if delete:
                await self._forget(delete)
        except UnixctlError as error:
            failures |= {number: Failure("ZoneLimit", str(error)) for number in limited}
        return failures

    async def _set_timeouts(self, write: Mapping[int, Zone], delete: Collection[int]) -> dict[int, Failure]:
        try:
            if operations := _plan(self._ovsdb.replica(), self._datapath, write, delete):
                await self._ovsdb.transact(operations)
        except TransactionError as error:
            return {number: Failure("ZoneTimeout", str(error)) for number in (*write, *delete)}
        there = _timeouts(self._ovsdb.replica(), self._datapath)
        late = Failure("OvsChanged", "the datapath's row is not as it was")
        return {number: late for number, zone in write.items() if there.get(number, 0) != zone.udp_timeout}

    async def usage(self) -> dict[int, Usage]:
        """Zones that have a limit, whosever. Nothing while there is no datapath yet."""
        try:
            answer = await self._dpctl("ct-get-limits")
        except UnixctlError:
            return {}
        return {int(number): Usage(int(limit), int(count)) for number, limit, count in _LIMIT.findall(answer)}

    async def connections(self, zones: Collection[int] | None = None) -> list[Connection]:
        """The connections in these zones; None: all of the datapath, whosever. Raises UnixctlError.

        What vswitchd tells in one answer it tells without a pause: no packet is forwarded meanwhile, 3 ms for each
        1,000 connections. So it is asked zone by zone, if they are not very many.
        """
        some = [[f"zone={zone}"] for zone in sorted(zones)] if zones is not None and len(zones) <= _FEW else [[]]
        dumps = [await self._dpctl("dump-conntrack", *zone) for zone in some]
        return await asyncio.to_thread(parse, "\n".join(dumps))

    async def _dpctl(self, command: str, *arguments: str) -> str:
        try:
            path = control_socket(self._run_dir)
        except (OSError, ValueError) as error:
            raise DeviceUnavailable(f"ovs-vswitchd is down: {error}") from error
        return await unixctl(path, f"dpctl/{command}", self._name, *arguments)


def _parts(words: list[str]) -> list[list[str]]:
    return [words[at : at + _AT_ONCE] for at in range(0, len(words), _AT_ONCE)]


def _policy_name(timeout: int) -> str:
    return f"udp-{timeout}"


def _timeouts(replica: Replica, datapath: str) -> dict[int, int]:
    """Seconds by zone, of the zones with a timeout of ours; 0 if somebody has changed it."""
    found = _datapath(replica, datapath)
    if found is None:
        return {}
    out: dict[int, int] = {}
    for number, uuid in replica.tables["Datapath"][found]["ct_zones"].items():
        row = replica.tables["CT_Zone"].get(uuid)
        if row is None or MARK not in row["external_ids"]:
            continue
        policy = replica.tables["CT_Timeout_Policy"].get(row["timeout_policy"] or "", {"timeouts": {}})
        timeout = policy["timeouts"].get(_UDP[0], 0)
        out[number] = timeout if policy["timeouts"] == _policy(timeout) else 0
    return out


def _policy(timeout: int) -> dict[str, int]:
    return dict.fromkeys(_UDP, timeout) | {"tcp_close": _CLOSED_TCP}


def _datapath(replica: Replica, datapath: str) -> str | None:
    """The row of our type of datapath, if there is one."""
    roots = replica.tables["Open_vSwitch"].values()
    return next((root["datapaths"][datapath] for root in roots if datapath in root["datapaths"]), None)


def _plan(replica: Replica, datapath: str, write: Mapping[int, Zone], delete: Collection[int]) -> list[Json]:
    """One transaction; nothing for what is already so."""
    have = _timeouts(replica, datapath)
    wanted = {number: zone.udp_timeout for number, zone in write.items()} | dict.fromkeys(delete, 0)
    stale = [number for number, timeout in wanted.items() if number in have and have[number] != timeout]
    fresh = {number: timeout for number, timeout in wanted.items() if timeout and have.get(number) != timeout}
    operations: list[Json] = []
    target = _datapath(replica, datapath)
    if target is None and fresh:
        operations += _new_datapath(datapath)
    where: Json = [["_uuid", "==", ["uuid", target] if target else ["named-uuid", "dp"]]]
    mutations: list[Json] = []
    if stale:
        mutations.append(["ct_zones", "delete", ["set", stale]])
    for timeout in sorted(set(fresh.values())):
        reference, more = _zone_row(replica, timeout)
        operations += more
        pairs = [[number, reference] for number, each in sorted(fresh.items()) if each == timeout]
        mutations.append(["ct_zones", "insert", ["map", pairs]])
    if mutations:
        operations.append({"op": "mutate", "table": "Datapath", "where": where, "mutations": mutations})
    return operations


def _new_datapath(datapath: str) -> list[Json]:
    ids = ["map", [[MARK, "1"]]]
    row = {"external_ids": ids}
    pair = ["map", [[datapath, ["named-uuid", "dp"]]]]
    return [
        {"op": "insert", "table": "Datapath", "uuid-name": "dp", "row": row},
        {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["datapaths", "insert", pair]]},
    ]


def _zone_row(replica: Replica, timeout: int) -> tuple[Json, list[Json]]:
    """Our row for this timeout, and how to make it if it is not there."""
    name = _policy_name(timeout)
    for uuid, row in replica.tables["CT_Zone"].items():
        policy = replica.tables["CT_Timeout_Policy"].get(row["timeout_policy"] or "")
        right = policy is not None and policy["timeouts"] == _policy(timeout)
        if row["external_ids"].get(MARK) == name and right:
            return ["uuid", uuid], []
    ids = ["map", [[MARK, name]]]
    policy_id, zone_id = f"policy{timeout}", f"zone{timeout}"
    timeouts = ["map", sorted(_policy(timeout).items())]
    zone = {"timeout_policy": ["named-uuid", policy_id], "external_ids": ids}
    return ["named-uuid", zone_id], [
        {
            "op": "insert",
            "table": "CT_Timeout_Policy",
            "uuid-name": policy_id,
            "row": {"timeouts": timeouts, "external_ids": ids},
        },
        {"op": "insert", "table": "CT_Zone", "uuid-name": zone_id, "row": zone},
    ]
