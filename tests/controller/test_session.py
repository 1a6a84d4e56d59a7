"""The stream, against a real controller with a real etcd: what an agent is told, and what is believed of it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.etcd.types import Op, Put, delete, put
from controller.status import device
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, port_pb2
from tests.controller.making import Maker, uid_of
from tests.controller.running import DEADLINE, FakeAgent, Site, site, until

NET = "tenants/acme/networks/web"
P1, P2, P3 = (f"tenants/acme/ports/p{n}" for n in (1, 2, 3))
LOCAL1 = f"localport/{uid_of(P1)}"
OWN, DOMAIN = "host", "domain/1001"


@pytest.fixture
async def place() -> AsyncIterator[Site]:
    async with site() as running:
        yield running


class Writer:
    """Commits to etcd and waits until the controller has seen it."""

    def __init__(self, place: Site) -> None:
        self.store = place.controller.store
        self.make = Maker(self.store.keys)

    async def __call__(self, *ops: Op) -> int:
        result = await self.store.etcd.txn((), ops)
        await self.store.passed(result.revision)
        return result.revision


@pytest.fixture
async def write(place: Site) -> Writer:
    writer = Writer(place)
    make = writer.make
    await writer(
        make.tenant("acme"),
        make.host("h1", 1, vtep="192.0.2.1"),
        make.host("h2", 2, vtep="192.0.2.2"),
        make.network(NET, 1),
        make.port(P1, NET, ["10.0.0.5", "fd00::5"], host="h1"),
        make.port(P2, NET, ["10.0.0.6"], host="h2"),
    )
    return writer


def one() -> FakeAgent:
    return FakeAgent("h1", "192.0.2.1")


def two() -> FakeAgent:
    return FakeAgent("h2", "192.0.2.2", instance="instance-2")


def keys_in(agent: FakeAgent) -> set[str]:
    return {key for held in agent.scopes.values() for key in held}


async def synced(place: Site, agent: FakeAgent, revision: int) -> None:
    uid = uid_of(f"hosts/{agent.name}")
    sessions = place.controller.sessions.by_host
    await until(lambda: uid in sessions and sessions[uid].synced >= revision, f"{agent.name} synced")


async def test_snapshot_and_active(place: Site, write: Writer) -> None:
    async with one().connected(place) as agent:
        assert agent.welcome and agent.welcome.host_number == 1 and agent.welcome.vtep == "192.0.2.1"
        await synced(place, agent, place.controller.store.revision)
        assert keys_in(agent) == {
            LOCAL1,
            f"hostpeer/{uid_of('hosts/h2')}",
            "segment/5001",
            f"endpoint/{uid_of(P1)}",
            f"endpoint/{uid_of(P2)}",
        }
        status = place.controller.status
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE, "the port is ACTIVE")
        assert status.port(P2).state == port_pb2.PortStatus.STATE_UNKNOWN
        assert status.host("hosts/h1").state == host_pb2.Host.STATE_READY
        assert status.host("hosts/h2").state == host_pb2.Host.STATE_NEW
    await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_DISCONNECTED)
    assert status.port(P1).state == port_pb2.PortStatus.STATE_UNKNOWN
    assert status.port(P1).last == port_pb2.PortStatus.STATE_ACTIVE


async def test_one_change_is_one_small_delta(place: Site, write: Writer) -> None:
    async with one().connected(place) as agent, two().connected(place) as other:
        await synced(place, agent, place.controller.store.revision)
        await synced(place, other, place.controller.store.revision)
        before = len(agent.units)
        revision = await write(write.make.port(P3, NET, ["10.0.0.7", "fd00::7"], host="h2"))
        await synced(place, agent, revision)
        await synced(place, other, revision)
        (unit,) = agent.units[before:]
        assert [r.key for part in unit for d in part.scopes for r in d.upserts] == [f"endpoint/{uid_of(P3)}"]
        assert sum(pb.ToAgent(update=part).ByteSize() for part in unit) <= 500
        assert f"localport/{uid_of(P3)}" in other.scopes[OWN]


async def test_reconnect_with_all_known_sends_nothing(place: Site, write: Writer) -> None:
    agent = one()
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        await until(lambda: uid_of(P1) in place.controller.store.world.port_status.rows)
    await until(lambda: not place.controller.sessions.by_host)
    writes = place.controller.store.world.port_status.rows[uid_of(P1)]
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        assert not agent.asked
        assert not [d for unit in agent.units for part in unit for d in part.scopes if d.upserts or d.removals]
    assert place.controller.store.world.port_status.rows[uid_of(P1)] == writes


async def test_reconnect_after_changes_sends_the_difference(place: Site, write: Writer) -> None:
    agent = one()
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
    await write(
        write.make.port(P3, NET, ["10.0.0.7"], host="h2"),
        delete(place.controller.store.keys.intent(P2)),
    )
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        assert agent.asked == [DOMAIN]
        deltas = [d for unit in agent.units for part in unit for d in part.scopes]
        assert [r.key for d in deltas for r in d.upserts] == [f"endpoint/{uid_of(P3)}"]
        assert [r.key for d in deltas for r in d.removals] == [f"endpoint/{uid_of(P2)}"]


async def test_window_and_collapsing(place: Site, write: Writer) -> None:
    async with one().connected(place) as agent:
        await synced(place, agent, place.controller.store.revision)
        agent.takes = agent.acks = False
        before = len(agent.units)
        first = await write(write.make.port(P3, NET, ["10.0.0.7"], host="h2"))
        await until(lambda: len(agent.units) == before + 1)
        for last in range(20, 40):
            revision = await write(write.make.port(P3, NET, [f"10.0.0.{last}"], host="h2"))
        session = place.controller.sessions.by_host[uid_of("hosts/h1")]
        assert session.synced < first
        assert len(agent.units) == before + 1  # the window is closed
        await agent.ack()
        agent.takes = agent.acks = True
        await agent.taken()
        await synced(place, agent, revision)
        assert len(agent.units) == before + 2  # twenty changes, one unit
        body = pb.Endpoint.FromString(agent.scopes[DOMAIN][f"endpoint/{uid_of(P3)}"])
        assert body.addresses == [bytes([10, 0, 0, 39])]


async def test_removal_needs_proof(place: Site, write: Writer) -> None:
    async with one().connected(place) as agent:
        await synced(place, agent, place.controller.store.revision)
        gone = delete(place.controller.store.keys.intent(P1))
        revision = await write(gone)  # no tombstone: a half-restored store looks like this
        await synced(place, agent, revision)
        assert agent.unaccounted.keys() == {LOCAL1} and LOCAL1 not in agent.scopes[OWN]
        status = place.controller.status
        await until(lambda: status.host("hosts/h1").unaccounted == 1)
        assert [c.type for c in status.host("hosts/h1").conditions] == ["Unaccounted"]

        row = store_pb2.HostStatusRow()
        row.CopyFrom(place.controller.store.world.host_status.rows[uid_of("hosts/h1")])
        row.accepted = revision
        key = place.controller.store.keys.host_status(uid_of("hosts/h1"))
        await write(put(key, row.SerializeToString()))
        await until(lambda: not agent.unaccounted, "the accepted port goes")
        await until(lambda: status.host("hosts/h1").unaccounted == 0)
        assert not status.host("hosts/h1").conditions


async def test_tombstone_is_carried_out_and_noted(place: Site, write: Writer) -> None:
    store = place.controller.store
    async with one().connected(place) as agent:
        await synced(place, agent, store.revision)
        revision = await write(delete(store.keys.intent(P1)), write.make.tombstone("h1", P1, network=NET))
        await synced(place, agent, revision)
        assert not agent.unaccounted and LOCAL1 not in keys_in(agent)
        assert DOMAIN not in agent.scopes  # no port in the domain any more
        removals = [r for unit in agent.units for part in unit for d in part.scopes for r in d.removals]
        assert (LOCAL1, revision) in [(r.key, r.proof) for r in removals]
        place_of = (uid_of("hosts/h1"), uid_of(P1), "")
        await until(lambda: store.world.tombstones.rows[place_of].acked, "the tombstone is acked")


async def test_what_a_host_could_not_remove_is_not_carried_out(place: Site, write: Writer) -> None:
    """It may still be there and send: its addresses are nobody else's until the host says otherwise."""
    store = place.controller.store
    async with one().connected(place) as agent:
        await synced(place, agent, store.revision)
        agent.failures = [pb.KeyFailure(key=LOCAL1, reason="NetnsRefused", text="busy")]
        other = write.make.tombstone("h1", P2, network=NET)  # for comparison
        revision = await write(delete(store.keys.intent(P1)), write.make.tombstone("h1", P1, network=NET), other)
        await synced(place, agent, revision)
        rows = store.world.tombstones.rows
        await until(lambda: rows[uid_of("hosts/h1"), uid_of(P2), ""].acked)
        assert not rows[uid_of("hosts/h1"), uid_of(P1), ""].acked
        outcome = await place.controller.sync.ask(revision=revision, domains=frozenset({1001}), timeout=1)
        assert [f.key for f in outcome.failed] == [LOCAL1] and not outcome.complete
        agent.failures = []
        await agent.ack()
        await until(lambda: rows[uid_of("hosts/h1"), uid_of(P1), ""].acked)


async def test_digest_mismatch_sends_the_scope_whole(place: Site, write: Writer) -> None:
    agent = one()
    agent.spoil = {DOMAIN}
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        wholes = [d.scope for unit in agent.units[1:] for part in unit for d in part.scopes if d.whole]
        assert wholes == [DOMAIN]
        assert place.controller.metrics.mismatches._value.get() == 1


async def test_foreign_history(place: Site, write: Writer) -> None:
    agent = one()
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
    for spoil in (
        {"revision": 1_000_000},
        {"lineage": pb.Lineage(number=1, id=secrets.token_hex(16))},
        {"lineage": pb.Lineage(number=99, id="unknown")},
        {"cluster_uid": secrets.token_hex(16)},
    ):
        stranger = one()
        stranger.revision, stranger.cluster_uid, stranger.lineage = 5, agent.cluster_uid, agent.lineage
        for name, value in spoil.items():
            setattr(stranger, name, value)
        async with stranger.connected(place):
            assert stranger.refused and stranger.refused.reason == "ForeignHistory", spoil
            assert not stranger.units
    status = place.controller.status
    await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_FOREIGN_HISTORY)
    async with agent.connected(place):  # nothing looks foreign any more, as when a restored store has been written to
        assert agent.refused and agent.refused.reason == "ForeignHistory"
    row = store_pb2.HostStatusRow()
    row.CopyFrom(place.controller.store.world.host_status.rows[uid_of("hosts/h1")])
    row.accepted = place.controller.store.revision
    await write(put(place.controller.store.keys.host_status(uid_of("hosts/h1")), row.SerializeToString()))
    async with stranger.connected(place):
        assert stranger.welcome
        await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_READY)


async def test_a_replica_that_lags_takes_no_host_for_one_of_another_history(
    place: Site, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica has welcomed it with the newest lineage, and then had nothing to tell: its revision is old."""
    store, agent = place.controller.store, one()
    number, newest = store.lineage[0] + 1, secrets.token_hex(16)
    await write(put(store.keys.lineage(number), store_pb2.LineageRow(id=newest).SerializeToString()))
    store.world.lineages.put(number, None)  # … which this one has not heard of
    barrier = store.barrier

    async def caught_up() -> int:
        store.world.lineages.put(number, newest)
        return await barrier()

    monkeypatch.setattr(store, "barrier", caught_up)
    agent.cluster_uid, agent.lineage = store.keys.cluster_uid, pb.Lineage(number=number, id=newest)
    async with agent.connected(place):
        assert agent.refused is None and agent.welcome is not None


async def test_a_second_instance_is_refused_while_the_first_lives(place: Site, write: Writer) -> None:
    twin = FakeAgent("h1", "192.0.2.1", instance="another")
    async with one().connected(place) as agent:
        async with twin.connected(place):
            assert twin.refused and twin.refused.reason == "DuplicateAgent"
        assert not agent.done.is_set()
        again = one()
        async with again.connected(place):  # the same instance again: its old stream is dead, it only does not know
            assert again.welcome
            async with asyncio.timeout(DEADLINE):
                await agent.done.wait()
    await until(lambda: uid_of("hosts/h1") not in place.controller.store.world.sessions.rows)
    async with twin.connected(place):
        assert twin.welcome
    events = await place.controller.events.read(uid_of("hosts/h1"))
    assert {"DuplicateAgent", "HostReplaced"} <= {event.reason for event in events}


async def test_vtep_is_pinned_once_and_must_match(place: Site, write: Writer) -> None:
    await write(write.make.host("h3", 3))
    thief = FakeAgent("h3", "192.0.2.1")
    wrong = FakeAgent("h1", "192.0.2.9")
    async with wrong.connected(place):
        assert wrong.refused and wrong.refused.reason == "VtepMismatch"
    store = place.controller.store
    await write(put(store.keys.vtep(store.world.hosts.rows["hosts/h1"].spec.vtep), b""))  # type: ignore[arg-type]
    async with thief.connected(place):
        assert thief.refused and thief.refused.reason == "VtepMismatch"
    honest = FakeAgent("h3", "192.0.2.3")
    async with honest.connected(place):
        assert honest.welcome
        assert str(store.world.hosts.rows["hosts/h3"].spec.vtep) == "192.0.2.3"
    assert "VtepMismatch" in [c.type for c in place.controller.status.host("hosts/h1").conditions]


async def test_unknown_and_fenced_hosts_are_refused(place: Site, write: Writer) -> None:
    stranger = FakeAgent("h9", "192.0.2.9")
    async with stranger.connected(place):
        assert stranger.refused and stranger.refused.reason == "UnknownHost"
    async with one().connected(place) as agent:
        await synced(place, agent, place.controller.store.revision)
        await write(write.make.host("h1", 1, vtep="192.0.2.1", fenced=True))
        async with asyncio.timeout(DEADLINE):
            await agent.done.wait()
        assert agent.refused and agent.refused.reason == "Fenced"
        assert LOCAL1 in keys_in(agent)  # and loses nothing
    tenant = FakeAgent("h1", "192.0.2.1")
    async with tenant.connected(place, place.ca.issue("tenant/acme/admin")):
        assert tenant.refused


async def test_silence_ends_a_session(place: Site, write: Writer) -> None:
    agent = one()
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        agent.pings = False
        async with asyncio.timeout(4):
            await agent.done.wait()


async def test_failure_reaches_status_and_clears(place: Site, write: Writer) -> None:
    agent = one()
    version = b"x" * 16
    agent.failures = [pb.KeyFailure(key=LOCAL1, version=version, reason="NAME_TAKEN", text="eth0 exists")]
    status = place.controller.status
    async with agent.connected(place):
        await synced(place, agent, place.controller.store.revision)
        await until(lambda: uid_of(P1) in place.controller.store.world.port_status.rows)
        chunk = place.controller.sessions.resources.scope(f"host/{uid_of('hosts/h1')}").chunks[LOCAL1]
        agent.failures[0].version = chunk.version
        await agent.ack()
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_FAILED)
        assert status.port(P1).reason == "NAME_TAKEN"
        outcome = await place.controller.sync.ask(revision=0, domains=frozenset({1001}), timeout=1)
        assert not outcome.complete and [f.key for f in outcome.failed] == [LOCAL1]
        agent.failures = []
        await agent.ack()
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE)


async def test_after_a_reboot_nothing_is_active_until_the_host_says_so(place: Site, write: Writer) -> None:
    agent, status = one(), place.controller.status
    async with agent.connected(place):
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE)
    agent.acks = False
    async with agent.connected(place):  # the stream broke, the host did not
        await until(lambda: agent.units)
        assert status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE
    agent.boot = "another"
    async with agent.connected(place):
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_PENDING)
        await until(lambda: agent.units)
        await agent.ack()
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE)


async def test_sync_names_a_stopped_host(place: Site, write: Writer) -> None:
    sync = place.controller.sync
    async with one().connected(place) as agent:
        other = two()
        async with other.connected(place):
            outcome = await sync.ask(revision=0, domains=frozenset({1001}), timeout=5)
            assert outcome.complete and outcome.hosts == {uid_of("hosts/h1"), uid_of("hosts/h2")}
            other.acks = False
            revision = await write(write.make.port(P3, NET, ["10.0.0.7"], host="h1"))
            outcome = await sync.ask(revision=revision, domains=frozenset({1001}), timeout=0.3)
            assert not outcome.complete
            assert outcome.behind.keys() == {uid_of("hosts/h2")} and outcome.slowest == uid_of("hosts/h2")
            assert outcome.synced == {uid_of("hosts/h1")}
        await until(lambda: uid_of("hosts/h2") not in place.controller.store.world.sessions.rows)
        outcome = await sync.ask(revision=revision, domains=None, timeout=2)
        assert not outcome.complete and outcome.disconnected == {uid_of("hosts/h2")}
        await synced(place, agent, revision)


async def test_sync_of_all_names_a_stopped_host_without_ports(place: Site, write: Writer) -> None:
    await write(write.make.host("h3", 3, vtep="192.0.2.3"), write.make.host("h4", 4, vtep="192.0.2.4"))
    third = FakeAgent("h3", "192.0.2.3", instance="instance-3")
    sync, sessions = place.controller.sync, place.controller.store.world.sessions
    async with one().connected(place), two().connected(place):
        async with third.connected(place):
            assert (await sync.ask(revision=0, domains=None, timeout=5)).complete  # h4 was never seen
        await until(lambda: uid_of("hosts/h3") not in sessions.rows)
        outcome = await sync.ask(revision=0, domains=None, timeout=2)
        assert not outcome.complete and outcome.disconnected == {uid_of("hosts/h3")}
        assert (await sync.ask(revision=0, domains=frozenset({1001}), timeout=2)).complete  # it need not know
        await write(write.make.host("h3", 3, vtep="192.0.2.3", fenced=True))
        assert (await sync.ask(revision=0, domains=None, timeout=2)).complete


async def test_a_late_word_never_stands_in_place_of_the_ports_own_host(
    place: Site, write: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that goes there and back at once: what the other host said meanwhile comes last."""
    etcd, status = place.controller.store.etcd, place.controller.status
    txn, held, go_on = etcd.txn, asyncio.Event(), asyncio.Event()

    async def gated(conditions: Any = (), ops: Any = (), *otherwise: Any) -> Any:
        rows = [
            store_pb2.PortStatusRow.FromString(op.value) for op in ops if isinstance(op, Put) and b"/s/port/" in op.key
        ]
        if any(row.host_uid == uid_of("hosts/h2") for row in rows) and not held.is_set():
            held.set()
            await go_on.wait()
        return await txn(conditions, ops, *otherwise)

    async with one().connected(place) as agent, two().connected(place) as other:
        await synced(place, agent, place.controller.store.revision)
        await synced(place, other, place.controller.store.revision)
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE)
        monkeypatch.setattr(etcd, "txn", gated)
        there = write.make.port(P1, NET, ["10.0.0.5", "fd00::5"], host="h2")
        await write(there, write.make.tombstone("h1", P1, moved_to="h2", network=NET))
        async with asyncio.timeout(DEADLINE):
            await held.wait()
        back = write.make.port(P1, NET, ["10.0.0.5", "fd00::5"], host="h1")
        gone = write.make.tombstone("h2", P1, moved_to="h1", network=NET)
        await write(back, delete(write.make.tombstone("h1", P1).key), gone)
        go_on.set()
        await until(lambda: status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE, "ACTIVE on its own host")
        await until(lambda: LOCAL1 not in other.scopes[OWN], "h2 is told that it is gone")
        await until(lambda: all(session.report.is_written for session in place.controller.sessions.by_host.values()))
        assert status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE


async def test_move_is_add_before_delete(place: Site, write: Writer) -> None:
    store, make = place.controller.store, write.make
    await write(make.port(P3, NET, ["10.0.0.7"], host="h1"))
    async with one().connected(place) as old, two().connected(place) as new:
        await synced(place, old, store.revision)
        await synced(place, new, store.revision)
        await until(lambda: uid_of(P1) in store.world.port_status.rows)
        new.acks = False
        revision = await write(
            make.port(P1, NET, ["10.0.0.5", "fd00::5"], host="h2"),
            make.tombstone("h1", P1, moved_to="h2", network=NET),
        )
        await until(lambda: new.revision >= revision)

        def hosts_of(agent: FakeAgent) -> tuple[str, str]:
            endpoint = pb.Endpoint.FromString(agent.scopes[DOMAIN][f"endpoint/{uid_of(P1)}"])
            return endpoint.host_uid.hex(), endpoint.previous_host_uid.hex()

        h1, h2 = uid_of("hosts/h1"), uid_of("hosts/h2")
        assert hosts_of(new) == (h1, h2)
        assert LOCAL1 in old.scopes[OWN] and LOCAL1 in new.scopes[OWN]
        old.acks, new.acks = False, True
        await new.ack()
        await until(lambda: hosts_of(old) == (h2, h1), "senders are told")
        assert LOCAL1 in old.scopes[OWN]  # it has not said that it knows
        old.acks = True
        await old.ack()
        await until(lambda: hosts_of(old) == (h2, "") and LOCAL1 not in old.scopes[OWN], "the old host lets go")
        assert not old.unaccounted
        await until(lambda: store.world.tombstones.rows[h1, uid_of(P1), ""].acked)
        assert place.controller.status.port(P1).state == port_pb2.PortStatus.STATE_ACTIVE


async def test_a_device_that_is_not_called_after_its_port(place: Site, write: Writer) -> None:
    """Told once in a session; a new session tells them all, and what it does not tell is so no more."""
    status, own = place.controller.status, device(place.controller.store.world.ports.rows[P1])
    agent = one()
    agent.devices = {uid_of(P1): "tn0123456789ab", uid_of(P2): "tn1123456789ab", uid_of(P3): "no such port"}
    async with agent.connected(place):
        await until(lambda: status.port(P1).device == "tn0123456789ab", "its device is known")
        assert status.port(P2).device not in agent.devices.values(), "that is another host's"
        agent.devices[uid_of(P1)] = "a name that no device can have"
        await agent.ack()
        revision = await write(write.make.port(P1, NET, ["10.0.0.5"], host="h1"))
        await synced(place, agent, revision)
        assert status.port(P1).device == "tn0123456789ab"
    agent.devices = {}
    async with agent.connected(place):
        await until(lambda: status.port(P1).device == own, "it has been made anew")


async def test_an_agent_of_a_later_version_is_understood_as_far_as_it_goes(place: Site, write: Writer) -> None:
    """It says more, and things of which this build has never heard: neither ends the session."""
    more = b"\xa2\x38\x03new"  # field 900
    agent = one()
    agent.features = ("colors", "quantum")
    hello = pb.Hello.FromString(agent.hello().SerializeToString() + more)
    agent.hello = lambda: hello  # type: ignore[method-assign]
    async with agent.connected(place):
        await agent.say(pb.FromAgent.FromString(more))  # a whole message
        facts = pb.Facts.FromString(pb.Facts(underlay_mtu=1500).SerializeToString() + more)
        facts.conditions.append(pb.HostCondition.FromString(pb.HostCondition(type="Tired").SerializeToString() + more))
        await agent.say(pb.FromAgent(facts=facts))
        agent.failures = [pb.KeyFailure(key="teapot/1", reason="Short"), pb.KeyFailure(key=LOCAL1, reason="New")]
        revision = await write(write.make.port(P3, NET, ["10.0.0.7"], host="h1"))
        await synced(place, agent, revision)
        world = place.controller.store.world
        await until(lambda: world.port_status.rows[uid_of(P1)].reason == "New")
        await until(lambda: world.host_status.rows[uid_of("hosts/h1")].conditions[0].type == "Tired")
        assert not agent.done.is_set()


async def test_a_session_key_that_went_is_written_again_and_all_that_needed_it(place: Site, write: Writer) -> None:
    """Also by somebody's hand: what the host said meanwhile is written when the key is there again."""
    store, h1 = place.controller.store, uid_of("hosts/h1")
    key, place_of = store.keys.session(h1), (h1, uid_of(P1), "")
    async with one().connected(place) as agent:
        await synced(place, agent, store.revision)
        session = place.controller.sessions.by_host[h1]
        await write(delete(key))
        await until(lambda: h1 in store.world.sessions.rows, "the key is there again")
        assert (await store.etcd.range(key)).kvs[0].value == session.key_value
        # The key goes in the very transaction after which the host says that it has let a port go.
        gone = write.make.tombstone("h1", P1, network=NET)
        revision = await write(delete(store.keys.intent(P1)), gone, delete(key))
        await synced(place, agent, revision)
        await until(lambda: store.world.tombstones.rows[place_of].acked, "the tombstone is acked")
        assert place.controller.sessions.by_host[h1] is session and not agent.done.is_set()
