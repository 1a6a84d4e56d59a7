"""Controllers as processes: one is stopped in the middle of a rollout and wakes up when another one has ended it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from controller.etcd import Etcd
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.replica import TTL
from tealnet.v1 import rollout_pb2, system_pb2
from tests.controller.rollouts.stage import NAME, WEB, Api, seconds, step
from tests.controller.running import FakeAgent, Site, prepare

STATE = rollout_pb2.Rollout
LIVES = 5


@dataclass
class Process:
    """One controller."""

    site: Site
    process: asyncio.subprocess.Process
    lines: list[str]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def says(self, word: str) -> None:
        """Wait for a line of its log."""
        assert self.process.stderr
        async with asyncio.timeout(30):
            while not any(word in line for line in self.lines):
                line = await self.process.stderr.readline()
                assert line, "".join(self.lines)
                self.lines.append(line.decode())


@contextlib.asynccontextmanager
async def controller(name: str, etcd: str) -> AsyncIterator[Process]:
    with tempfile.TemporaryDirectory(prefix="tn") as place:
        directory = Path(place)
        ca, settings = prepare(directory, replica=name, etcd=(etcd,))
        words = {
            "listen": list(settings.listen), "join_listen": "", "metrics_listen": "", "replica": name, "etcd": [etcd],
            "ca": str(settings.ca), "cert": str(settings.cert), "key": str(settings.key), "compact": False,
        }  # fmt: skip
        (directory / "controller.yaml").write_text(yaml.safe_dump(words))
        command = (sys.executable, "-m", "controller", "--config", str(directory / "controller.yaml"))
        process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=dict(os.environ))
        unused: Any = None
        found = Process(Site(directory, ca, settings, unused), process, [])
        try:
            await found.says('"serving"')
            yield found
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.communicate()


async def entries_when(api: Api, holds: Callable[[rollout_pb2.Rollout], bool]) -> list[rollout_pb2.RolloutEntry]:
    """The rollout's history as soon as something holds."""
    watch = api.system.Watch(system_pb2.WatchRequest(parent=NAME))
    try:
        async with asyncio.timeout(60):
            async for response in watch:
                if response.object.rollout.name and holds(response.object.rollout):
                    return list(response.object.rollout.history)
        raise AssertionError("the watch has ended")
    finally:
        watch.cancel()


async def begin(api: Api, *steps: rollout_pb2.RolloutStep) -> None:
    rollout = rollout_pb2.Rollout(networks=[WEB], target="green", steps=steps, deadline=seconds(300))
    await api.rollouts.CreateRollout(
        rollout_pb2.CreateRolloutRequest(parent="tenants/acme", rollout_id="r", rollout=rollout)
    )


async def end_leases(etcd: Etcd) -> None:
    """All keys that vanish with a controller vanish now."""
    _, found = await etcd.scan(b"\x00", b"\xff")
    for lease in {kv.lease for kv in found} - {0}:
        if await etcd.time_to_live(lease) <= TTL:
            await etcd.revoke(lease)


def agents() -> list[FakeAgent]:
    return [FakeAgent(f"h{n}", f"192.0.2.{n}", instance=f"instance-{n}") for n in (1, 2)]


async def test_a_leader_is_stopped_and_wakes_up() -> None:
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn"))) / "etcd"
        server = await stack.enter_async_context(EmbeddedEtcd(Options(directory, durability=Durability.MEMORY)))
        first = await stack.enter_async_context(controller("a", server.endpoint))
        await first.says("chores begin")
        second = await stack.enter_async_context(controller("b", server.endpoint))
        channel = await stack.enter_async_context(second.site.channel(second.site.ca.issue("admin")))
        api = Api(channel)
        await api.furnish()
        for agent in agents():
            await stack.enter_async_context(agent.connected(second.site))
        await begin(api, step(2, blue=90, green=10), step(0.1, blue=50, green=50), step(0, green=100))
        await entries_when(api, lambda rollout: rollout.state == STATE.STATE_SHIFTING)
        first.send(signal.SIGSTOP)
        entries = await entries_when(api, lambda rollout: rollout.state == STATE.STATE_SUCCEEDED)  # by the other one
        before = (await api.rollouts.GetRollout(rollout_pb2.GetRolloutRequest(name=NAME))).revision
        first.send(signal.SIGCONT)
        await first.says("chores end")
        after = await api.rollouts.GetRollout(rollout_pb2.GetRolloutRequest(name=NAME))
        assert after.revision == before and list(after.history) == entries
        steps = [(entry.reason, entry.step) for entry in entries]
        assert len(set(steps)) == len(steps), "each transition once"
        assert {network.colors[1].weight for network in after.status.networks} == {100}
        assert first.process.returncode is None and second.process.returncode is None


async def test_the_only_controller_is_killed_again_and_again() -> None:
    """It ends as it would have ended without that: after each transition the one that made it is dead.

    The lease of the dead one is ended at once, and not when its five seconds are over.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn"))) / "etcd"
        server = await stack.enter_async_context(EmbeddedEtcd(Options(directory, durability=Durability.MEMORY)))
        etcd, hosts = await stack.enter_async_context(Etcd([server.endpoint])), agents()
        for life in range(LIVES):
            async with controller(f"life-{life}", server.endpoint) as one, contextlib.AsyncExitStack() as inner:
                api = Api(await inner.enter_async_context(one.site.channel(one.site.ca.issue("admin"))))
                if not life:
                    await api.furnish()
                for agent in hosts:
                    await inner.enter_async_context(agent.connected(one.site))
                if not life:
                    await begin(api, step(0.1, blue=90, green=10), step(0.1, green=100))
                last = life == LIVES - 1
                entries = await entries_when(
                    api,
                    lambda rollout, life=life, last=last: (  # type: ignore[misc]
                        rollout.state == STATE.STATE_SUCCEEDED if last else len(rollout.history) > life
                    ),
                )
                if last:
                    got = await api.rollouts.GetRollout(rollout_pb2.GetRolloutRequest(name=NAME))
                    assert [color.weight for color in got.status.networks[0].colors] == [0, 100]
                one.send(signal.SIGKILL)
                await one.process.wait()
            await end_leases(etcd)
        reasons = [entry.reason for entry in entries]
        assert reasons == ["Started", "Prepared", "GatesPassed", "Applied", "HoldOver", "Applied", "Done"]
