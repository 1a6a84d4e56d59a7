"""A minimal OVSDB client that keeps its connection (RFC 7047 over a unix socket): what an expert's program does."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from bench.common import BenchError
from bench.inside import holder_pid
from tealnet.lab.machine import Machine

Op = dict[str, Any]
_SECONDS = 60.0


class Ovsdb:
    """One connection to one database of a lab machine; one call at a time, from any thread."""

    def __init__(self, machine: Machine, path: str, database: str) -> None:
        self.database = database
        self._number, self._text = 0, ""
        self._decoder = json.JSONDecoder()
        self._lock = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(_SECONDS)
        self._socket.connect(f"/proc/{holder_pid(machine)}/root{path}")

    def close(self) -> None:
        """No more."""
        self._socket.close()

    def transact(self, *ops: Op) -> list[Any]:
        """One transaction; raises BenchError if the database refuses it."""
        with self._lock:
            answer: list[Any] = self._call("transact", [self.database, *ops])
        for part in answer:
            if part and "error" in part:
                raise BenchError(f"ovsdb: {part}")
        return answer

    def select(self, table: str, columns: Sequence[str], **where: object) -> list[dict[str, Any]]:
        """Rows whose columns equal `where`."""
        clauses = [[column, "==", value] for column, value in where.items()]
        op = {"op": "select", "table": table, "where": clauses, "columns": list(columns)}
        rows: list[dict[str, Any]] = self.transact(op)[0]["rows"]
        return rows

    def uuid(self, table: str, name: str) -> list[str]:
        """The reference to the row of that name."""
        found: list[str] = self.select(table, ["_uuid"], name=name)[0]["_uuid"]
        return found

    def _call(self, method: str, params: list[Any]) -> Any:
        self._number += 1
        self._send({"method": method, "params": params, "id": self._number})
        while True:
            message = self._read()
            if message.get("method") == "echo":
                self._send({"id": message["id"], "result": message["params"], "error": None})
            elif message.get("id") == self._number:
                if message.get("error"):
                    raise BenchError(f"ovsdb: {message['error']}")
                return message["result"]

    def _send(self, message: Op) -> None:
        self._socket.sendall(json.dumps(message).encode())

    def _read(self) -> Op:
        while True:
            self._text = self._text.lstrip()
            try:
                message, end = self._decoder.raw_decode(self._text)
            except ValueError:
                data = self._socket.recv(1 << 20)
                if not data:
                    raise BenchError("ovsdb has closed the connection") from None
                self._text += data.decode()
            else:
                self._text = self._text[end:]
                found: Op = message
                return found


class Switch:
    """Ports of one bridge of a lab host, by transactions that return at commit as a program's would."""

    def __init__(self, machine: Machine, bridge: str) -> None:
        self.db = Ovsdb(machine, "/run/openvswitch/db.sock", "Open_vSwitch")
        self.bridge = self.db.uuid("Bridge", bridge)

    def add(self, ports: Sequence[tuple[str, str]]) -> None:
        """(device, iface-id or "") each, in one transaction."""
        ops: list[Op] = []
        for number, (device, ident) in enumerate(ports):
            ids = [["iface-id", ident]] if ident else []
            ops += [
                {
                    "op": "insert",
                    "table": "Interface",
                    "uuid-name": f"i{number}",
                    "row": {"name": device, "external_ids": ["map", ids]},
                },
                {
                    "op": "insert",
                    "table": "Port",
                    "uuid-name": f"p{number}",
                    "row": {"name": device, "interfaces": ["named-uuid", f"i{number}"]},
                },
            ]
        self._change("insert", [["named-uuid", f"p{number}"] for number in range(len(ports))], ops)

    def remove(self, devices: Sequence[str]) -> None:
        """All in one transaction; returns at commit."""
        self._change("delete", [self.db.uuid("Port", device) for device in devices], [])

    def caught_up(self, *, seconds: float = 60.0) -> None:
        """Return when vswitchd has done what was committed (cur_cfg has reached next_cfg)."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            row = self.db.select("Open_vSwitch", ["cur_cfg", "next_cfg"])[0]
            if row["cur_cfg"] >= row["next_cfg"]:
                return
            time.sleep(0.02)
        raise BenchError("vswitchd does not catch up")

    def _change(self, how: str, ports: list[list[str]], before: list[Op]) -> None:
        where = [["_uuid", "==", self.bridge]]
        self.db.transact(
            *before,
            {"op": "mutate", "table": "Bridge", "where": where, "mutations": [["ports", how, ["set", ports]]]},
            {"op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]]},
        )
