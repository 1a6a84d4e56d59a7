"""A client of ovsdb-server: JSON-RPC on a unix socket, and a replica of the few columns we need.

Protocol: RFC 7047; the monitor with differences (`monitor_cond`, `update2`) is in ovsdb-server(7). One session is one
connection; it never reconnects, whoever holds it opens another one. Why not a library: docs/adr/0006-ovsdb-client.md.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from itertools import count
from typing import Any

import structlog

from agent.drivers.base import DeviceUnavailable

log = structlog.get_logger()

DATABASE = "Open_vSwitch"
CALL_TIMEOUT = 10.0  # seconds; ovsdb-server answers in milliseconds or hangs

Json = Any
Row = dict[str, Any]


class Kind(Enum):
    """What a column holds, which decides how its JSON and its differences are read; the value is its default."""

    INTEGER = 0
    STRING = ""
    OPTIONAL = None  # at most one element
    SET = frozenset[str]()
    MAP = "map"  # {} is not hashable; see `default`

    def default(self) -> Any:
        """The value that ovsdb-server leaves out of initial and inserted rows."""
        return {} if self is Kind.MAP else self.value


# The columns that are replicated. Whatever is not here costs nothing when it changes (statistics, status, …).
COLUMNS: Mapping[str, Mapping[str, Kind]] = {
    "Open_vSwitch": {
        "cur_cfg": Kind.INTEGER,
        "next_cfg": Kind.INTEGER,
        "bridges": Kind.SET,
        "datapath_types": Kind.SET,
        "datapaths": Kind.MAP,
        "ovs_version": Kind.OPTIONAL,
        "other_config": Kind.MAP,
        "external_ids": Kind.MAP,
    },
    "Bridge": {
        "name": Kind.STRING,
        "datapath_type": Kind.STRING,
        "fail_mode": Kind.OPTIONAL,
        "protocols": Kind.SET,
        "ports": Kind.SET,
        "other_config": Kind.MAP,
        "external_ids": Kind.MAP,
    },
    "Port": {"name": Kind.STRING, "interfaces": Kind.SET, "external_ids": Kind.MAP},
    "Interface": {
        "name": Kind.STRING,
        "type": Kind.STRING,
        "options": Kind.MAP,
        "ofport": Kind.OPTIONAL,
        "ofport_request": Kind.OPTIONAL,
        "error": Kind.OPTIONAL,
        "external_ids": Kind.MAP,
    },
    "Datapath": {"ct_zones": Kind.MAP, "external_ids": Kind.MAP},
    "CT_Zone": {"timeout_policy": Kind.OPTIONAL, "external_ids": Kind.MAP},
    "CT_Timeout_Policy": {"timeouts": Kind.MAP, "external_ids": Kind.MAP},
}


class TransactionError(Exception):
    """ovsdb-server refused a transaction; nothing of it was done."""


def encode(kind: Kind, value: Any) -> Json:
    """A column's value as RFC 7047 JSON. Sets here are of strings and integers; see `references` for rows."""
    if kind is Kind.MAP:
        return ["map", [[key, value[key]] for key in sorted(value)]]
    if kind is Kind.SET:
        return ["set", sorted(value)]
    if value is None:
        return ["set", []]
    return value


def references(uuids: Iterable[str]) -> Json:
    """A set of rows; a uuid that starts with "@" is the name of a row inserted in the same transaction."""
    return ["set", [["named-uuid", uuid[1:]] if uuid.startswith("@") else ["uuid", uuid] for uuid in uuids]]


def decode(kind: Kind, value: Json) -> Any:
    """The inverse: integers and strings as they are, uuids as strings, sets as frozensets, maps as dicts."""
    if kind is Kind.MAP:
        return {_atom(key): _atom(item) for key, item in value[1]}
    is_set = isinstance(value, list) and value[0] == "set"
    elements = [_atom(item) for item in value[1]] if is_set else [_atom(value)]
    if kind is Kind.SET:
        return frozenset(elements)
    return elements[0] if elements else None


def _atom(value: Json) -> Any:
    return value[1] if isinstance(value, list) else value


def _changed(kind: Kind, old: Any, diff: Any) -> Any:
    """Apply a difference of `update2`: sets by symmetric difference, maps by key (the same value again removes)."""
    if kind is Kind.SET:
        return old ^ diff
    if kind is Kind.MAP:
        kept = {key: value for key, value in old.items() if key not in diff}
        return kept | {key: value for key, value in diff.items() if old.get(key) != value}
    return diff


class Replica:
    """The monitored columns of all rows: `tables[table][row uuid][column]`. Rows are replaced, never changed."""

    def __init__(self) -> None:
        self.tables: dict[str, dict[str, Row]] = {table: {} for table in COLUMNS}

    def update(self, updates: Mapping[str, Mapping[str, Mapping[str, Json]]]) -> frozenset[tuple[str, str]]:
        """Take a <table-updates2>; returns the (table, column) pairs it touched."""
        touched: set[tuple[str, str]] = set()
        for table, rows in updates.items():
            kinds, mine = COLUMNS[table], self.tables[table]
            for uuid, change in rows.items():
                if "modify" in change:
                    new = {name: decode(kinds[name], value) for name, value in change["modify"].items()}
                    old = mine[uuid]
                    mine[uuid] = old | {name: _changed(kinds[name], old[name], diff) for name, diff in new.items()}
                    touched |= {(table, name) for name in new}
                    continue
                touched |= {(table, name) for name in kinds}
                if "delete" in change:
                    mine.pop(uuid, None)
                    continue
                given = change["initial"] if "initial" in change else change["insert"]
                defaults = {name: kind.default() for name, kind in kinds.items()}
                mine[uuid] = defaults | {name: decode(kinds[name], value) for name, value in given.items()}
        return frozenset(touched)


class Session:
    """One connection to ovsdb-server. Use as an async context manager; `closed()` ends when the connection does.

    `on_update` gets the touched (table, column) pairs after each notification. ovsdb-server sends a transaction's
    updates before its reply, so after `transact` the replica already has what was written.
    """

    def __init__(self, path: str, *, on_update: Callable[[frozenset[tuple[str, str]]], None]) -> None:
        self.replica = Replica()
        self._path = path
        self._on_update = on_update
        self._ids = count(1)
        self._waiting: dict[int, Callable[[Json], None]] = {}
        self._closed: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Session:
        self._reader, self._writer = await asyncio.open_unix_connection(self._path)
        self._closed = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._read(), name="ovsdb-reader")
        try:
            await self._monitor()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        self._writer.transport.abort()
        await asyncio.gather(self._task, return_exceptions=True)

    async def closed(self) -> None:
        """Wait until the other side has gone."""
        assert self._closed is not None
        await asyncio.shield(self._closed)

    async def transact(self, operations: Sequence[Json]) -> list[Json]:
        """Run one transaction; returns a result per operation.

        Raises TransactionError if it was refused, DeviceUnavailable if the connection ended before the answer: then
        nobody knows whether it was done.
        """
        results: list[Json] = await self._call("transact", [DATABASE, *operations])
        for result in results:
            if isinstance(result, dict) and "error" in result:
                raise TransactionError(f"{result['error']}: {result.get('details', '')}")
        return results

    async def _monitor(self) -> None:
        """Fill the replica. The reply is taken in the reader, so that no update behind it comes too early."""
        requests = {table: [{"columns": list(columns)}] for table, columns in COLUMNS.items()}
        await self._call("monitor_cond", [DATABASE, "replica", requests], take=self.replica.update)

    async def _call(self, method: str, params: Sequence[Json], *, take: Callable[[Json], object] | None = None) -> Json:
        assert self._closed is not None
        if self._closed.done():
            raise DeviceUnavailable("ovsdb-server closed the connection")
        answer: asyncio.Future[Json] = asyncio.get_running_loop().create_future()

        def answered(message: Json) -> None:
            if take is not None and message.get("error") is None:
                take(message["result"])
            if not answer.done():
                answer.set_result(message)

        number = next(self._ids)
        self._waiting[number] = answered
        self._send({"method": method, "params": list(params), "id": number})
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                await asyncio.wait({answer, self._closed}, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            self._writer.transport.abort()  # a server that hangs is of no use to anybody: reconnect
            raise DeviceUnavailable(f"ovsdb-server did not answer {method} in {CALL_TIMEOUT:g} s") from None
        finally:
            self._waiting.pop(number, None)
        if not answer.done():
            raise DeviceUnavailable("ovsdb-server closed the connection")
        message = answer.result()
        if message.get("error") is not None:
            raise TransactionError(json.dumps(message["error"]))
        return message["result"]

    def _send(self, message: Json) -> None:
        self._writer.write(json.dumps(message, separators=(",", ":")).encode())

    async def _read(self) -> None:
        decoder = json.JSONDecoder()
        buffer = ""
        pending = bytearray()
        try:
            while chunk := await self._reader.read(1 << 18):
                pending += chunk
                # A message ends in "}", so a buffer that does not is incomplete and not worth parsing: a large dump
                # comes in many chunks and would be parsed once for each.
                if not pending.endswith(b"}"):
                    continue
                buffer = pending.decode()
                start = 0
                while start < len(buffer):
                    try:
                        message, start = decoder.raw_decode(buffer, start)
                    except json.JSONDecodeError:
                        break
                    self._take(message)
                pending = bytearray(buffer[start:].encode())
        except OSError as error:
            log.info("ovsdb connection failed", error=str(error))
        finally:
            if self._closed is not None and not self._closed.done():
                self._closed.set_result(None)

    def _take(self, message: Json) -> None:
        method = message.get("method")
        if method == "echo":
            self._send({"id": message["id"], "result": message["params"], "error": None})
        elif method == "update2":
            self._on_update(self.replica.update(message["params"][1]))
        elif method is None and (answered := self._waiting.get(message["id"])) is not None:
            answered(message)
