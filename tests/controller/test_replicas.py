"""Several replicas on one etcd: Sync over all, one does the chores, a lost lease costs no session."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from controller.chores import Chores
from controller.etcd import Etcd
from controller.etcd.embedded import Durability, EmbeddedEtcd, Options
from controller.etcd.types import Op, Put, created, delete, put
from controller.idle import KEPT, Idle
from controller.intents.base import identity_digest
from controller.intents.group import ensure_default
from controller.policy_reports import PolicyReports
from controller.release import Release
from controller.rows import Term
from controller.server import Controller
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tealnet.v1 import host_pb2, network_pb2, security_pb2
from tests.controller.making import Maker, uid_of
from tests.controller.running import DEADLINE, FakeAgent, Site, prepare, running, until

NET = "tenants/acme/networks/web"
P1, P2, P3 = (f"tenants/acme/ports/p{n}" for n in (1, 2, 3))
H1, H2 = uid_of("hosts/h1"), uid_of("hosts/h2")
DOMAIN = frozenset({1001})


@dataclass
class Pair:
    sites: list[Site]
    stack: contextlib.AsyncExitStack
    etcd: Etcd

    @property
    def controllers(self) -> list[Controller]:
        return [place.controller for place in self.sites]

    @property
    def make(self) -> Maker:
        return Maker(self.controllers[0].store.keys)

    async def write(self, *ops: Op) -> int:
        result = await self.etcd.txn((), ops)
        for controller in self.controllers:
            await controller.store.passed(result.revision)
        return result.revision


@pytest.fixture
async def etcd() -> AsyncIterator[tuple[Etcd, str]]:
    with tempfile.TemporaryDirectory(prefix="tn") as name:
        options = Options(Path(name) / "etcd", durability=Durability.MEMORY)
        async with EmbeddedEtcd(options) as server, Etcd([server.endpoint]) as client:
            yield client, server.endpoint


async def start(etcd: tuple[Etcd, str], stack: contextlib.AsyncExitStack, names: str) -> Pair:
    sites = []
    for name in names:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tn")))
        ca, settings = prepare(directory, replica=name, etcd=(etcd[1],), lost_after=3)
        sites.append(Site(directory, ca, settings, await stack.enter_async_context(running(settings))))
    pair = Pair(sites, stack, etcd[0])
    await pair.write(
        pair.make.tenant("acme"),
        pair.make.host("h1", 1, vtep="192.0.2.1"),
        pair.make.host("h2", 2, vtep="192.0.2.2"),
        pair.make.network(NET, 1),
        pair.make.port(P1, NET, ["10.0.0.5"], host="h1"),
        pair.make.port(P2, NET, ["10.0.0.6"], host="h2"),
    )
    return pair


@pytest.fixture
async def pair(etcd: tuple[Etcd, str]) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        yield await start(etcd, stack, "ab")


@pytest.fixture
async def single(etcd: tuple[Etcd, str]) -> AsyncIterator[Pair]:
    async with contextlib.AsyncExitStack() as stack:
        yield await start(etcd, stack, "a")


async def test_sync_asks_all_replicas(pair: Pair) -> None:
    one, two = FakeAgent("h1", "192.0.2.1"), FakeAgent("h2", "192.0.2.2", instance="instance-2")
    sync = pair.controllers[0].sync
    async with one.connected(pair.sites[0]), two.connected(pair.sites[1]):
        revision = await pair.write(pair.make.port(P3, NET, ["10.0.0.7"], host="h1"))
        outcome = await sync.ask(revision=revision, domains=DOMAIN, timeout=5)
        assert outcome.complete and outcome.synced == {H1, H2}
        two.acks = False
        revision = await pair.write(pair.make.port(P3, NET, ["10.0.0.8"], host="h1"))
        outcome = await sync.ask(revision=revision, domains=DOMAIN, timeout=0.5)
        assert outcome.synced == {H1} and outcome.behind.keys() == {H2} and outcome.slowest == H2
        assert not outcome.disconnected
        world = pair.controllers[0].store.world
        await until(lambda: not [b for b in world.barriers.rows.values() if not b.mark], "the question is gone")
        await until(lambda: not world.answers.rows, "the answers are gone")


async def test_a_question_that_is_given_up_leaves_nothing(pair: Pair) -> None:
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(pair.sites[1]):
        await until(lambda: H1 in pair.controllers[0].store.world.sessions.rows)
        agent.acks = False
        revision = await pair.write(pair.make.port(P3, NET, ["10.0.0.7"], host="h1"))
        world = pair.controllers[1].store.world
        asking = asyncio.create_task(pair.controllers[0].sync.ask(revision=revision, domains=DOMAIN, timeout=600))
        await until(lambda: [b for b in world.barriers.rows.values() if not b.mark])
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: not [b for b in world.barriers.rows.values() if not b.mark])
        await until(
            lambda: not any("Questions._answer" in repr(task) for task in asyncio.all_tasks()), "the answer's end"
        )
        await pair.controllers[0].store.barrier()
        assert not world.answers.rows


async def test_one_replica_does_the_chores_and_another_follows(pair: Pair) -> None:
    worlds = [controller.store.world for controller in pair.controllers]
    first = (await until(lambda: worlds[0].terms.rows.get("chores"))).replica
    assert isinstance(worlds[1].terms.rows["chores"], Term)
    leader, other = (0, 1) if first == "a" else (1, 0)
    lineage = pair.controllers[other].store.lineage[0]
    await pair.etcd.revoke(pair.controllers[leader].replica.lease_id)
    await until(lambda: (t := worlds[other].terms.rows.get("chores")) and t.replica != first, "another term")
    await until(lambda: pair.controllers[other].store.lineage[0] > lineage, "a new lineage for each term")


async def test_a_lost_lease_costs_no_session(single: Pair) -> None:
    controller = single.controllers[0]
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(single.sites[0]):
        await until(lambda: H1 in controller.store.world.sessions.rows)
        before, lease = controller.store.world.sessions.rows[H1], controller.replica.lease_id
        await single.etcd.revoke(lease)
        await until(lambda: H1 not in controller.store.world.sessions.rows, "the key goes with the lease")
        await until(lambda: controller.store.world.sessions.rows.get(H1) == before, "and comes back")
        assert controller.replica.lease_id != lease and not agent.done.is_set()
        revision = await single.write(single.make.port(P3, NET, ["10.0.0.7"], host="h1"))
        await until(lambda: controller.sessions.by_host[H1].synced >= revision)
        await until(lambda: uid_of(P3) in controller.store.world.port_status.rows, "status is accepted")


async def test_a_silent_host_is_lost_and_returns(single: Pair) -> None:
    controller, agent = single.controllers[0], FakeAgent("h1", "192.0.2.1")
    async with agent.connected(single.sites[0]):
        await until(lambda: H1 in controller.sessions.by_host)
    status = controller.status
    await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_DISCONNECTED)
    await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_LOST)
    outcome = await controller.sync.ask(revision=0, domains=DOMAIN, timeout=1)
    assert outcome.lost == {H1} and outcome.disconnected == {H2}  # never seen
    async with agent.connected(single.sites[0]):
        await until(lambda: status.host("hosts/h1").state == host_pb2.Host.STATE_READY)


async def release_of(single: Pair, clock: Callable[[], float] = time.monotonic) -> Release:
    store = single.controllers[0].store
    term = await until(lambda: store.world.terms.rows.get("chores"))
    release = Release(store, created(store.keys.chores, term.create_revision), clock=clock)
    store.subscribe(release.idle.follow)
    return release


def buried(single: Pair, *, acked: bool, quarantine: int = 0) -> list[Put]:
    keys = single.make.keys
    tombstone, address = keys.tombstone(H1, uid_of(P1)), keys._key(f"k/u/ip/{'5' * 32}/{'0' * 32}")
    holder = store_pb2.Holder(name=P1, tombstone=tombstone.decode(), released=True).SerializeToString()
    row = store_pb2.Tombstone(address_keys=[address.decode()], acked=acked, quarantine_seconds=quarantine)
    return [put(tombstone, row.SerializeToString()), put(address, holder)]


async def test_addresses_are_freed_after_ack_and_quarantine(single: Pair) -> None:
    release = await release_of(single)

    async def left() -> int:
        await release.tombstones()
        return len((await single.etcd.range(address)).kvs)

    ops = buried(single, acked=False)
    address = ops[1].key
    await single.write(*ops)
    assert await left() == 1  # its host has not said that it is gone
    await single.write(buried(single, acked=True, quarantine=3600)[0])
    assert await left() == 1
    await single.write(buried(single, acked=True)[0])
    assert await left() == 0
    await until(lambda: not single.controllers[0].store.world.tombstones.rows)


async def test_an_address_with_a_new_holder_is_not_freed(single: Pair) -> None:
    release = await release_of(single)
    tombstone, address = buried(single, acked=True)
    await single.write(tombstone)
    await single.etcd.txn((), [put(address.key, store_pb2.Holder(name=P2).SerializeToString())])
    await release.tombstones()
    assert len((await single.etcd.range(address.key)).kvs) == 1


async def test_an_address_released_again_waits_again(single: Pair) -> None:
    """Also when nobody has looked while it was taken back."""
    now = 1000.0
    release = await release_of(single, lambda: now)
    tombstone, address = buried(single, acked=True, quarantine=60)

    async def left() -> int:
        await release.tombstones()
        return len((await single.etcd.range(address.key)).kvs)

    await single.write(tombstone, address)
    assert await left() == 1
    now += 59
    await single.write(delete(tombstone.key))
    await single.write(tombstone, address)
    now += 2
    assert await left() == 1
    now += 60
    assert await left() == 0


async def test_what_changes_while_it_is_freed_is_not_freed(single: Pair) -> None:
    """The port came back and left again: another tombstone, which its host has not carried out."""
    release = await release_of(single)
    tombstone, address = buried(single, acked=True)
    await single.write(tombstone, address)
    seen = next(iter(single.controllers[0].store.world.tombstones.rows.values()))
    await single.write(delete(tombstone.key))
    await single.write(*buried(single, acked=False))
    await release._free(seen)
    assert len((await single.etcd.range(address.key)).kvs) == 1


async def test_a_fenced_host_frees_what_waits_for_it(single: Pair) -> None:
    release = await release_of(single)
    await single.write(*buried(single, acked=False), single.make.host("h1", 1, fenced=True))
    await release.tombstones()
    await until(lambda: not single.controllers[0].store.world.tombstones.rows)


async def test_numbers_wait_for_every_host(single: Pair) -> None:
    release, controller = await release_of(single), single.controllers[0]
    key = single.make.keys.vni(77)
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(single.sites[0]):
        await until(lambda: controller.sessions.by_host[H1].synced > 0)
    await until(lambda: H1 not in controller.store.world.sessions.rows)
    await single.etcd.txn((), [put(key, store_pb2.Holder(released=True).SerializeToString())])

    async def rounds() -> int:
        world = controller.store.world
        mark = (await single.etcd.range(key)).kvs[0].mod_revision if (await single.etcd.range(key)).kvs else 0
        await until(lambda: min(r.low_water for r in world.replicas.rows.values()) > mark, "a new low water mark")
        await release.numbers()
        await release.numbers()
        return len((await single.etcd.range(key)).kvs)

    assert await rounds() == 1  # h1 is away and has seen nothing since
    async with agent.connected(single.sites[0]):
        await until(lambda: controller.sessions.by_host[H1].synced == controller.store.revision)
        assert await rounds() == 0


async def test_identities_go_when_their_tenant_is_gone(single: Pair) -> None:
    release, store = await release_of(single), single.controllers[0].store
    keys = single.make.keys
    living = store.world.tenants.rows["tenants/acme"].uid

    def issued(number: int, uid: str) -> list[Put]:
        row = store_pb2.Identity(tenant_uid=uid).SerializeToString()
        return [put(keys.identity(number), row), put(keys.identity_set(identity_digest((uid,))), str(number).encode())]

    await single.write(*issued(7001, living), *issued(7002, uid_of("old")), *issued(7003, uid_of("older")))
    held = keys.reference(kind="identity", uid="7003", by_kind="port", by_uid=uid_of("p"))
    await single.etcd.txn((), [put(held, b"")])
    await release.numbers()  # seen for the first time
    seen = await store.barrier()
    await until(lambda: min(r.low_water for r in store.world.replicas.rows.values()) > seen, "a new low water mark")
    await release.numbers()
    assert 7002 in store.world.identities.rows, "only when it was free at two checks"
    await release.numbers()
    await until(lambda: 7002 not in store.world.identities.rows)
    assert {7001, 7003} <= store.world.identities.rows.keys()
    assert not (await single.etcd.range(keys.identity_set(identity_digest((uid_of("old"),))))).kvs


async def test_an_identity_that_is_used_again_waits_again(single: Pair) -> None:
    """And one that nobody has used for long goes, also while its groups live."""
    store, make = single.controllers[0].store, single.make
    now = [0.0]
    idle = Idle(store, clock=lambda: now[0])
    store.subscribe(idle.follow)
    left = await single.write(make.identity(7001, "tenants/acme"), make.identity(7002, "tenants/acme", NET))
    assert idle.expired(left) == {}  # a host may be at that very revision
    assert idle.expired(left + 1) == {7002: left}  # there is no such group: nobody will have it again
    now[0] = KEPT
    assert idle.expired(left + 1) == {7001: left, 7002: left}
    used = await single.write(make.port(P3, NET, ["10.0.0.7"], identity=7001))
    assert 7001 not in idle.expired(used + 9)
    gone = await single.write(delete(make.keys.intent(P3)))
    assert 7001 not in idle.expired(gone + 9)
    now[0] = 2 * KEPT
    assert idle.expired(gone) == {7002: left}
    assert idle.expired(gone + 1) == {7001: gone, 7002: left}
    await store.load()
    assert 7001 not in idle.expired(store.revision + 9)  # read anew: what was between is not known


async def test_groups_come_and_go_while_a_host_sleeps(single: Pair) -> None:
    """No number gets another meaning before the host that knows the old one is back."""
    release, controller = await release_of(single), single.controllers[0]
    store, make = controller.store, single.make
    agent = FakeAgent("h1", "192.0.2.1")
    async with agent.connected(single.sites[0]):
        await until(lambda: controller.sessions.by_host[H1].synced > 0)
    await until(lambda: H1 not in store.world.sessions.rows)
    issued: set[int] = set()

    async def rounds() -> None:
        seen = await store.barrier()
        await until(lambda: min(r.low_water for r in store.world.replicas.rows.values()) > seen, "a low water mark")
        await release.numbers()
        await release.numbers()
        await store.barrier()

    for turn in range(40):
        group = f"tenants/acme/securityGroups/g{turn}"
        number = 8000 + turn
        assert number not in store.world.identities.rows
        await single.write(make.group(group), make.identity(number, "tenants/acme", group))
        await single.write(make.port(P3, NET, ["10.0.0.7"], identity=number))
        await single.write(delete(make.keys.intent(P3)))
        await single.write(delete(make.keys.intent(group)))
        issued.add(number)
    await rounds()
    assert issued <= store.world.identities.rows.keys()
    async with agent.connected(single.sites[0]):
        await until(lambda: controller.sessions.by_host[H1].synced == store.revision)
        await rounds()
        assert not issued & store.world.identities.rows.keys()


async def test_a_store_that_fills_up_is_told_in_time(single: Pair) -> None:
    controller = single.controllers[0]
    settings = replace(controller.settings, etcd_quota_mib=2)
    chores = Chores(controller.chores.rollouts, replica=controller.replica, settings=settings)

    async def reasons() -> list[str]:
        await chores._room()
        return [event.reason for event in await controller.events.read("cluster")]

    assert "StoreAlmostFull" not in await reasons()
    for number in range(2):
        await single.etcd.txn((), [put(f"/elsewhere/{number}".encode(), bytes(900_000))])
    for _ in range(500):  # etcd writes to its file a moment later
        if "StoreAlmostFull" in await reasons():
            break
        await asyncio.sleep(0.02)
    else:
        raise AssertionError("nobody was told")


async def test_old_terms_change_nothing(single: Pair) -> None:
    store = single.controllers[0].store
    await until(lambda: store.world.terms.rows.get("chores"))
    await single.write(*buried(single, acked=True))
    await Release(store, created(store.keys.chores, 1)).tombstones()
    await store.barrier()
    assert store.world.tombstones.rows


async def test_reading_everything_anew_changes_nothing(single: Pair) -> None:
    store = single.controllers[0].store
    seen: list[str] = []
    await until(lambda: store.world.terms.rows.get("chores"))
    await ensure_default(store, "tenants/acme")  # as a chore does once a minute
    store.subscribe(lambda _, changes: seen.extend(change.table for change in changes))
    await store.load()
    assert not set(seen) - {"replicas", "terms", "lineages"}
    await single.write(delete(store.keys.intent(P2)))
    assert P2 not in store.world.ports.rows


async def test_sync_follows_a_host_to_another_replica(pair: Pair) -> None:
    agent = FakeAgent("h1", "192.0.2.1")
    sync = pair.controllers[0].sync
    await pair.write(delete(pair.make.keys.intent(P2)))  # h1 alone
    async with contextlib.AsyncExitStack() as first:
        await first.enter_async_context(agent.connected(pair.sites[1]))
        await until(lambda: H1 in pair.controllers[0].store.world.sessions.rows)
        agent.acks = False
        revision = await pair.write(pair.make.port(P3, NET, ["10.0.0.7"], host="h1"))
        asking = asyncio.create_task(sync.ask(revision=revision, domains=DOMAIN, timeout=8))
        await until(lambda: [b for b in pair.controllers[1].store.world.barriers.rows.values() if not b.mark])
        again = FakeAgent("h1", "192.0.2.1")
        async with again.connected(pair.sites[0]):  # its old stream hangs
            outcome = await asking
            assert outcome.complete and outcome.synced == {H1} and outcome.took < 5
            async with asyncio.timeout(DEADLINE):
                await agent.done.wait()


async def test_rules_are_asked_of_all_replicas(pair: Pair) -> None:
    """One question, one answer per replica that has hosts, and nothing left."""
    make, store = pair.make, pair.controllers[0].store
    group, policy = "tenants/acme/securityGroups/web", network_pb2.Network.POLICY_ENFORCE
    rule = security_pb2.SecurityRule(protocol="tcp")
    await pair.write(
        make.network(NET, 1, policy=policy),
        make.group(group, ingress=[rule]),
        make.identity(301, "tenants/acme", group),
        make.port(P1, NET, ["10.0.0.5"], host="h1", identity=301),
        make.port(P2, NET, ["10.0.0.6"], host="h2", identity=301),
    )
    ((number, origin),) = pair.controllers[0].sessions.resources.security.bodies.rows[301].origins
    count = pb.RuleCount(identity=301, direction=pb.RULE_DIRECTION_INGRESS, rule=number, packets=2)
    one, two = FakeAgent("h1", "192.0.2.1"), FakeAgent("h2", "192.0.2.2", instance="instance-2")
    one.rule_report = two.rule_report = pb.RuleReport(whole=True, counts=[count])
    controller = pair.controllers[0]
    reports = PolicyReports(store, controller.sessions, controller.questions)
    row = store_pb2.Barrier(question=store_pb2.Barrier.QUESTION_RULES, identities=[301])
    async with one.connected(pair.sites[0]), two.connected(pair.sites[1]):
        await until(lambda: controller.store.world.sessions.rows.keys() >= {H1, H2})
        written: list[str] = []
        store.subscribe(lambda _, changes: written.extend(change.table for change in changes))
        told = await reports.ask(row, timeout=5)
        assert not told.silent
        assert [s.packets for s in told.sums.values()] == [4]
        assert list(told.sums) == [(origin.uid, origin.id, pb.RULE_DIRECTION_INGRESS)]
        # The question and its end, the answer and its end; the tables of one batch may show them together.
        assert written.count("answers") <= 2
        two.rule_report = None
        told = await reports.ask(row, timeout=0.3)
        assert told.silent == {H2} and [s.packets for s in told.sums.values()] == [2]
    await store.barrier()
    assert not store.world.answers.rows
    assert not [b for b in store.world.barriers.rows.values() if not b.mark]
