"""Commands to a running OVS daemon, as ovs-appctl(8) sends them, without a process.

Protocol: one JSON-RPC 1.0 request and its reply on the daemon's control socket; the commands are in ovs-vswitchd(8),
"RUNTIME MANAGEMENT COMMANDS".
"""

from __future__ import annotations

import asyncio
import json

from agent.drivers.base import DeviceUnavailable

TIMEOUT = 10.0  # seconds; `revalidator/wait` takes up to 0.5


class UnixctlError(Exception):
    """The daemon refused the command; the text is its own."""


async def unixctl(path: str, command: str, *args: str) -> str:
    """Run `command` and return its output. Raises UnixctlError, or DeviceUnavailable if the daemon does not answer."""
    request = json.dumps({"id": 0, "method": command, "params": list(args)}).encode()
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                writer.write(request)
                answer = await _object(reader)
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        raise DeviceUnavailable(f"{path} does not answer {command}: {error}") from error
    if answer.get("error") is not None:
        raise UnixctlError(str(answer["error"]).strip())
    return str(answer["result"])


async def _object(reader: asyncio.StreamReader) -> dict[str, object]:
    """Read one JSON object; nothing marks its end but itself."""
    data = b""
    while chunk := await reader.read(1 << 16):
        data += chunk
        if data.rstrip().endswith(b"}"):
            try:
                message: dict[str, object] = json.loads(data)
            except ValueError:
                continue
            return message
    raise ConnectionResetError("closed before it answered")
