"""The controller's clock is set forward and back by a day: no host is lost, nothing is freed early, all goes on."""

from __future__ import annotations

import sys
import time
from types import SimpleNamespace

import pytest

from controller.admission import LOST
from tests.controller.running import FakeAgent, site, until
from tests.controller.writing import become, replicated

DAY = 86_400


async def test_the_clock_of_a_controller_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead = [0]
    clock = SimpleNamespace(**vars(time))
    clock.time, clock.time_ns = (lambda: time.time() + ahead[0]), (lambda: time.time_ns() + ahead[0] * 10**9)
    # Of our own modules: gRPC hands Python's idea of the time to C, where the clock stays.
    ours = [module for name, module in sys.modules.items() if name.startswith("controller")]
    for module in (module for module in ours if vars(module).get("time") is time):
        monkeypatch.setattr(module, "time", clock)
    become()
    async with site(lost_after=3) as place:
        api = replicated(place.controller)
        store, world = place.controller.store, place.controller.store.world
        await api.tenant("acme")
        await api.host("h1", vtep="192.0.2.1")
        await api.host("h2", vtep="192.0.2.2")
        await api.network("acme/web", cidrs=["10.0.0.0/24"])
        await api.port("acme/a", host="hosts/h1")
        await api.port("acme/gone", host="hosts/h1")
        one, two = FakeAgent("h1", "192.0.2.1"), FakeAgent("h2", "192.0.2.2", instance="two")
        async with one.connected(place), two.connected(place):
            uid = world.hosts.rows["hosts/h1"].uid
            await until(lambda: place.controller.sessions.by_host[uid].synced == store.revision)
            await api.delete_port("tenants/acme/ports/gone")  # in quarantine for five minutes
            (waiting,) = world.tombstones.rows

            async def goes_on(name: str) -> None:
                written = await api.port(name, host="hosts/h1")
                await until(lambda: place.controller.sessions.by_host[uid].synced >= written.revision)
                await until(lambda: (row := world.port_status.rows.get(written.uid)) and row.applied)
                # Heartbeats, leases, pings and chores go on for longer than any of them may be silent.
                pings = one.pinged.number
                await until(lambda: one.pinged.number > pings + 4)
                assert not one.done.is_set() and not two.done.is_set() and store.stale_since is None
                assert waiting in world.tombstones.rows
                assert not [row for row in world.host_status.rows.values() if row.state == LOST]

            ahead[0] = DAY
            await goes_on("acme/later")
            ahead[0] = -DAY
            await goes_on("acme/earlier")
