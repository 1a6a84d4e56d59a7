"""Status and metrics on the unix socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.core import Condition
from agent.desired import LAYERS
from agent.drivers.base import Failure
from agent.metrics import Status, StatusServer
from agent.spares import Spares
from agent.tally import Tally
from tests.agent.core_rig import PORT, WELCOME, WORLD, Agent, running, until
from tests.fakes.controller import FakeController
from tests.fakes.device import DictDevice


async def nothing() -> dict[int, Any]:
    return {}


@asynccontextmanager
async def serving(agent: Agent, path: Path) -> AsyncIterator[None]:
    tally = Tally(agent.inputs, packets=nothing, usage=nothing)
    spares = Spares(agent.inputs, size=0, there=lambda layer: {})
    status = Status(
        agent.core, agent.reconciler, tally, spares, conditions=lambda: [Condition("VswitchdDown", "…", "start it")]
    )
    task = asyncio.create_task(StatusServer(status, path).run())
    await until(path.exists)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def get(path: Path, what: str) -> tuple[str, str]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(f"GET {what} HTTP/1.1\r\nHost: agent\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return head.splitlines()[0], body


async def test_status_and_metrics(tmp_path: Path) -> None:
    devices = {layer: DictDevice(layer) for layer in LAYERS}
    devices["netns"].plan_error("acme.space-1", Failure("NetnsForeign", "somebody's"))
    controller, socket = FakeController(), tmp_path / "run" / "agent.sock"
    async with running(tmp_path / "checkpoint", devices) as agent, serving(agent, socket):
        head, body = await get(socket, "/status")
        assert "200" in head and json.loads(body)["in_sync"] is False
        await agent.core.greeted(WELCOME)
        await agent.take(controller.unit(WORLD))
        await until(lambda: agent.said.acks)
        status = json.loads((await get(socket, "/status"))[1])
        assert status["in_sync"] and status["revision"] == status["applied"] == controller.revision
        assert status["failures"] == {PORT[0]: "NetnsForeign: somebody's"}
        assert status["layers"]["netns"]["failing"] == {"acme.space-1": "NetnsForeign"}
        assert status["conditions"] == [{"type": "VswitchdDown", "text": "…", "remedy": "start it"}]
        head, body = await get(socket, "/metrics")
        assert "200" in head
        values = dict(line.rsplit(" ", 1) for line in body.splitlines() if not line.startswith("#"))
        assert float(values["tealnet_applied_revision"]) == controller.revision
        assert float(values['tealnet_repairs_total{layer="flow"}']) == 0
        assert float(values['tealnet_failing{layer="netns"}']) == 1
        assert (float(values["tealnet_color_collisions_total"]), float(values["tealnet_full_zones"])) == (0, 0)
        assert socket.stat().st_mode & 0o777 == 0o600
        assert "404" in (await get(socket, "/else"))[0]
    assert not socket.exists()


async def test_rubbish_on_the_socket_harms_nobody(tmp_path: Path) -> None:
    devices = {layer: DictDevice(layer) for layer in LAYERS}
    socket = tmp_path / "agent.sock"
    async with running(tmp_path / "checkpoint", devices) as agent, serving(agent, socket):
        for rubbish in (b"\n\n", b"\xff" * 100_000, b"GET\r\n\r\n"):
            _, writer = await asyncio.open_unix_connection(socket)
            writer.write(rubbish)
            writer.close()
        assert "200" in (await get(socket, "/metrics"))[0]
