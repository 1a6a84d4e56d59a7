"""Commands to a running OVS daemon, as ovs-appctl(8) sends them, without a process.

Protocol: JSON-RPC 1.0 requests and their replies, in order, on the daemon's control socket; the commands are in
ovs-vswitchd(8), "RUNTIME MANAGEMENT COMMANDS".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from agent.drivers.base import DeviceUnavailable

TIMEOUT = 10.0  # seconds; `revalidator/wait` takes up to 0.5
_UNKNOWN = "is not a valid command"
_WINDOW = 64  # commands on their way: the daemon takes ten of one connection at a time


class UnixctlError(Exception):
    """The daemon refused the command; the text is its own."""


async def unixctl(path: str, command: str, *args: str) -> str:
    """Run `command` and return its output. Raises UnixctlError, or DeviceUnavailable if the daemon does not answer.

    One that is just starting answers before it knows its commands: that is no answer either.
    """
    (answer,) = await unixctl_each(path, command, [args])
    if isinstance(answer, UnixctlError):
        raise answer
    return answer


async def unixctl_each(path: str, command: str, arguments: Sequence[Sequence[str]]) -> list[str | UnixctlError]:
    """Run `command` once for each list of arguments, on one connection; what it said each time.

    Raises DeviceUnavailable if the daemon does not answer.
    """
    answers: list[str | UnixctlError] = []
    try:
        async with asyncio.timeout(TIMEOUT) as limit:
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                replies = _Replies(reader)
                for at in range(0, len(arguments), _WINDOW):
                    part = arguments[at : at + _WINDOW]
                    writer.write(b"".join(_request(command, words) for words in part))
                    answers += [_verdict(command, await replies.next()) for _ in part]
                    limit.reschedule(asyncio.get_running_loop().time() + TIMEOUT)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        raise DeviceUnavailable(f"{path} does not answer {command}: {error}") from error
    return answers


def _request(command: str, arguments: Sequence[str]) -> bytes:
    return json.dumps({"id": 0, "method": command, "params": list(arguments)}).encode()


def _verdict(command: str, reply: dict[str, Any]) -> str | UnixctlError:
    error = reply.get("error")
    if error is None:
        return str(reply["result"])
    if str(error).startswith(f'"{command}" {_UNKNOWN}'):
        raise DeviceUnavailable(f"{command} is not known, or not known yet")
    return UnixctlError(str(error).strip())


class _Replies:
    """JSON objects from a stream; nothing marks the end of one but itself."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._decoder = json.JSONDecoder()
        self._data = bytearray()
        self._ready: list[dict[str, Any]] = []

    async def next(self) -> dict[str, Any]:
        while not self._ready:
            chunk = await self._reader.read(1 << 18)
            if not chunk:
                raise ConnectionResetError("closed before it answered")
            self._data += chunk
            if chunk.rstrip().endswith(b"}"):  # else the last object is incomplete, and may be a long one
                self._parse()
        return self._ready.pop(0)

    def _parse(self) -> None:
        text, at = self._data.decode(errors="replace"), 0
        while at < len(text):
            try:
                found, at = self._decoder.raw_decode(text, at)
            except ValueError:
                break
            self._ready.append(found)
        self._data = bytearray(text[at:].encode())
