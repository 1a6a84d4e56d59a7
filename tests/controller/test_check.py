"""`teal admin check` on a real etcd: a whole store has no findings, a damage done by hand has one and its repair."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
import pytest_asyncio

from controller.etcd.types import Op, delete, get, prefix_end, put
from controller.intents.base import identity_digest
from controller.names import split_of
from controller.store import Store
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.store.v1 import store_pb2
from tealnet.v1 import admin_pb2, port_pb2, security_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.running import FakeAgent, Site, site, until
from tests.controller.writing import Replicated, become, replicated

WEB, A, B = "tenants/acme/networks/web", "tenants/acme/ports/a", "tenants/acme/ports/b"


@dataclass
class Checked:
    """A site with one object of each kind; `say` is what the API of its controller does when called directly."""

    place: Site
    api: Replicated
    agent: FakeAgent

    @property
    def store(self) -> Store:
        return self.place.controller.store

    async def check(self, *, repair: bool = False, timeout: float = 10.0) -> admin_pb2.CheckResponse:
        request = admin_pb2.CheckRequest(repair=repair)
        return await self.place.controller.check.run(request, timeout=timeout)

    async def kinds(self, *, repair: bool = False) -> list[str]:
        return [finding.kind for finding in (await self.check(repair=repair)).findings]

    async def damage(self, *ops: Op) -> None:
        await self.store.etcd.txn((), ops)
        await self.store.barrier()

    async def intents(self) -> dict[bytes, bytes]:
        start = self.store.keys.watched + b"o/"
        _, found = await self.store.etcd.scan(start, prefix_end(start))
        return {kv.key: kv.value for kv in found}

    def uid(self, name: str) -> str:
        world = self.store.world
        tables: tuple[Any, ...] = (world.tenants, world.hosts, world.networks, world.routers, world.ports, world.groups)
        return next(str(table.rows[name].uid) for table in tables if name in table.rows)


@contextlib.asynccontextmanager
async def checked() -> AsyncIterator[Checked]:
    become()
    async with site() as place:
        api, agent = replicated(place.controller), FakeAgent("h1", "192.0.2.1")
        await api.tenant("acme")
        await api.host("h1", vtep="192.0.2.1")
        await api.router("acme/main")
        await api.network("acme/web", cidrs=["10.0.0.0/16", "fd00::/64"], router="tenants/acme/routers/main")
        await api.network("acme/db", cidrs=["10.0.1.0/24"], colors=["blue", "green"])
        rule = security_pb2.SecurityRule(protocol="tcp", remote_group="tenants/acme/securityGroups/default")
        await api.group("acme/app", ingress=[rule])
        await api.tier("base", position=security_pb2.PolicyTier.POSITION_ABOVE)
        await api.port("acme/a", host="hosts/h1", security_groups=["tenants/acme/securityGroups/app"])
        await api.port("acme/b", host="hosts/h1")
        await api.port("acme/c", network="db", color="blue")
        await api.port("acme/green", network="db", color="green")
        await api.port("acme/gone", host="hosts/h1")
        await api.delete_port("tenants/acme/ports/gone")  # its address is in quarantine
        await api.rollout("acme/r", networks=["tenants/acme/networks/db"])
        async with agent.connected(place):
            yield Checked(place, api, agent)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole() -> AsyncIterator[Checked]:
    """Every test leaves it as it found it: repaired."""
    async with checked() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def one(whole: Checked) -> AsyncIterator[Checked]:
    become()
    host = whole.uid("hosts/h1")
    await until(lambda: whole.place.controller.sessions.by_host[host].synced == whole.store.revision)
    yield whole
    assert not await inconsistencies(whole.store)


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_nothing_is_wrong_with_a_whole_store(one: Checked) -> None:
    answer = await one.check()
    assert not answer.findings and not answer.silent_hosts
    assert answer.hosts == 1 and answer.intents == 14 and answer.keys > 40 and answer.revision


def holder(name: str, uid: str) -> bytes:
    return store_pb2.Holder(name=name, uid=uid).SerializeToString()


def segment(one: Checked) -> str:
    return one.store.world.networks.rows[WEB].spec.segments[0].uid


def ip_of_a(one: Checked) -> bytes:
    return one.store.keys.ip(segment(one), one.store.world.ports.rows[A].spec.addresses[0])


def free_ip(one: Checked) -> bytes:
    return one.store.keys.ip(segment(one), ip_address("10.0.0.250"))


def quarantined(one: Checked) -> bytes:
    (row,) = (row for row in one.store.world.tombstones.rows.values() if row.port_name.endswith("/gone"))
    return row.address_keys[0].encode()


def vni(one: Checked) -> bytes:
    return one.store.keys.vni(one.store.world.networks.rows[WEB].spec.segments[0].vni)


def slot(one: Checked) -> bytes:
    row = one.store.world.ports.rows[A]
    return one.store.keys.slot(tenant_uid=one.uid("tenants/acme"), kind="port", slot=row.slot)


def reference(one: Checked) -> bytes:
    return one.store.keys.reference(kind="host", uid=one.uid("hosts/h1"), by_kind="port", by_uid=one.uid(A))


def wrong_reference(one: Checked) -> bytes:
    return one.store.keys.reference(kind="group", uid=one.uid("hosts/h1"), by_kind="port", by_uid=one.uid(A))


def by_set(one: Checked) -> bytes:
    number = one.store.world.ports.rows[A].spec.identity
    return one.store.keys.identity_set(identity_digest(one.store.world.identities.rows[number].members))


def identity(one: Checked) -> bytes:
    return one.store.keys.identity(one.store.world.ports.rows[A].spec.identity)


NOBODY = holder("tenants/acme/ports/nobody", "0" * 32)
REPAIRED: dict[str, tuple[str, Callable[[Checked], bytes], bytes | None]] = {
    "an address is free though a port has it": ("MISSING_KEY", ip_of_a, None),
    "a VNI is free though a network has it": ("MISSING_KEY", vni, None),
    "a quota slot is free": ("MISSING_KEY", slot, None),
    "a reference is lost": ("MISSING_KEY", reference, None),
    "an identity is not found by its groups": ("MISSING_KEY", by_set, None),
    "an address is another's": ("WRONG_KEY", ip_of_a, NOBODY),
    "a VNI is marked as released": (
        "WRONG_KEY", vni, store_pb2.Holder(name=WEB, uid="1" * 32, released=True).SerializeToString(),
    ),
    "a key holds garbage": ("WRONG_KEY", slot, b"\xff\xff"),
    "an identity is found by others' groups": ("WRONG_KEY", by_set, b"1"),
    "an address is held for nobody": ("DANGLING_KEY", free_ip, NOBODY),
    "an address is held for one who has another": ("DANGLING_KEY", free_ip, b"A"),
    "a reference from nobody": (
        "DANGLING_KEY",
        lambda one: one.store.keys.reference(kind="network", uid=one.uid(WEB), by_kind="port", by_uid="0"), NOBODY,
    ),
    "a reference to what is not referred to": ("DANGLING_KEY", wrong_reference, b"A"),
    "a set of groups leads to no identity": (
        "DANGLING_KEY", lambda one: one.store.keys.identity_set("f" * 32), b"4294967290",
    ),
    "an address waits for a tombstone that is gone": (
        "DANGLING_KEY", free_ip,
        store_pb2.Holder(name="tenants/acme/ports/x", uid="2" * 32, tombstone="w/t/nowhere", released=True)
        .SerializeToString(),
    ),
    "the status of a port that is no more": (
        "ORPHAN", lambda one: one.store.keys.port_status("3" * 32), store_pb2.PortStatusRow().SerializeToString(),
    ),
    "the status of a host that is no more": (
        "ORPHAN", lambda one: one.store.keys.host_status("3" * 32), store_pb2.HostStatusRow().SerializeToString(),
    ),
    "the guard of a router that is no more": ("ORPHAN", lambda one: one.store.keys.domain_guard("3" * 32), b""),
    "a proof that a living port must go": (
        "ORPHAN", lambda one: one.store.keys.tombstone(one.uid("hosts/h1"), one.uid(A)),
        store_pb2.Tombstone(port_name=A, reason="DELETED").SerializeToString(),
    ),
    "an identity that ports have is gone": ("MISSING_IDENTITY", identity, None),
}  # fmt: skip


@pytest.mark.parametrize("what", REPAIRED)
async def test_a_damage_is_found_and_mended(one: Checked, what: str) -> None:
    kind, key_of, value = REPAIRED[what]
    key = key_of(one)
    value = holder(A, one.uid(A)) if value == b"A" else value
    before, intents = await one.store.etcd.range(key), await one.intents()
    await one.damage(put(key, value) if value is not None else delete(key))
    answer = await one.check()
    assert [f.kind for f in answer.findings] == [kind], answer
    (found,) = answer.findings
    assert found.subject == one.store.keys.relative(key) and found.repair and found.text and not found.repaired
    assert await one.kinds() == [kind]  # a look changes nothing
    (mended,) = (await one.check(repair=True)).findings
    assert mended.repaired and mended.subject == found.subject
    assert await one.kinds() == []
    assert await one.intents() == intents
    after = await one.store.etcd.range(key)
    assert [kv.value for kv in after.kvs] == [kv.value for kv in before.kvs]


UNKNOWN = {
    "a kind of unique key of a later version": "k/u/floating/10.0.0.1",
    "a kind of key of a later version": "k/z/whatever",
}


@pytest.mark.parametrize("key", UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_what_is_not_known_is_left_alone(one: Checked, key: str) -> None:
    full = one.store.keys.watched.removesuffix(b"w/") + key.encode()
    await one.damage(put(full, NOBODY))
    (found,) = (await one.check(repair=True)).findings
    assert (found.kind, found.subject, found.repair, found.repaired) == ("UNKNOWN_KEY", key, "", False)
    assert (await one.store.etcd.range(full)).kvs
    await one.damage(delete(full))


async def test_what_a_later_versions_object_holds_is_left_alone(one: Checked) -> None:
    key = free_ip(one)
    await one.damage(put(key, holder("tenants/acme/gateways/g", "4" * 32)))
    (found,) = (await one.check(repair=True)).findings
    assert found.kind == "UNKNOWN_KEY" and (await one.store.etcd.range(key)).kvs
    await one.damage(delete(key))


async def test_an_intent_that_cannot_be_read_loses_nothing(one: Checked) -> None:
    """Its keys look as if nobody had them; it may be of a later version, or be mended by hand."""
    key = one.store.keys.intent(B)
    (before,) = (await one.store.etcd.range(key)).kvs
    keys = one.store.keys.watched.removesuffix(b"w/") + b"k/"
    _, held = await one.store.etcd.scan(keys, prefix_end(keys))
    await one.damage(put(key, b"\xff\xff\xff"))
    found = (await one.check(repair=True)).findings
    assert "UNREADABLE" in {f.kind for f in found}
    assert {f.kind for f in found if f.repaired} <= {"ORPHAN"}, found  # its status is written anew by its host
    assert (await one.store.etcd.range(key)).kvs[0].value == b"\xff\xff\xff"
    assert (await one.store.etcd.scan(keys, prefix_end(keys)))[1] == held
    await one.damage(put(key, before.value))
    await until(lambda: B in one.store.world.ports.rows)
    await one.check(repair=True)
    assert await one.kinds() == []


async def test_intents_that_contradict_each_other_are_for_a_person(one: Checked) -> None:
    """Two ports with one address, a port without its network, colors without a split: told, and left alone."""
    keys, etcd = one.store.keys, one.store.etcd
    names = (B, "tenants/acme/networks/db", split_of("tenants/acme/networks/db"))
    port, web, split = [(await etcd.range(keys.intent(name))).kvs[0] for name in names]
    stored = store_pb2.Stored.FromString(port.value)
    mine = one.store.world.ports.rows[A].spec
    other = port_pb2.Port.FromString(stored.message)
    other.addresses[:], other.mac = [str(a) for a in mine.addresses], mine.mac
    stored.message = other.SerializeToString()
    await one.damage(put(port.key, stored.SerializeToString()), delete(web.key), delete(split.key))
    before = await one.intents()
    found = (await one.check(repair=True)).findings
    kinds = {f.kind for f in found if not f.repair}
    assert kinds >= {"SHARED_KEY", "DANGLING_NAME"}, found
    assert any(f.object == "tenants/acme/ports/c" and f.kind == "DANGLING_NAME" for f in found)
    assert await one.intents() == before
    await one.damage(*(put(kv.key, kv.value) for kv in (port, web, split)))
    await one.check(repair=True)
    assert await one.kinds() == []


async def test_what_happens_meanwhile_is_no_finding_and_no_repair_hurts_it(one: Checked) -> None:
    """Ports come and go while checks with repairs run one after the other."""
    over, turns = asyncio.Event(), dict.fromkeys("xyz", 0)

    async def busy(name: str) -> None:
        while not over.is_set():
            await one.api.port(f"acme/{name}", host="hosts/h1")
            await one.api.update_port(f"tenants/acme/ports/{name}", "description", description=str(turns[name]))
            await one.api.delete_port(f"tenants/acme/ports/{name}")
            turns[name] += 1

    jobs, checks = [asyncio.create_task(busy(name)) for name in turns], 0
    try:
        while checks < 5 or min(turns.values()) < 3:
            answer = await one.check(repair=True, timeout=0.2)
            assert not answer.findings, answer.findings
            checks += 1
    finally:
        over.set()
        await asyncio.gather(*jobs)


# ---- what hosts have


async def test_what_a_host_lacks_or_has_too_much_is_sent_again(one: Checked) -> None:
    agent, host = one.agent, "hosts/h1"
    scope = next(name for name in agent.scopes if name.startswith("domain/"))
    endpoint = f"endpoint/{one.uid(A)}"
    local = f"localport/{one.uid(B)}"
    before = {name: dict(held) for name, held in agent.scopes.items()}
    del agent.scopes[scope][endpoint]
    agent.scopes["host"][local] += b"\x00"
    agent.scopes[scope]["endpoint/" + "5" * 32] = b"?"
    answer = await one.check()
    assert sorted((f.kind, f.subject) for f in answer.findings) == [
        ("HOST_DIFFERS", f"{host} host {local}"),
        ("HOST_EXTRA", f"{host} {scope} endpoint/{'5' * 32}"),
        ("HOST_LACKS", f"{host} {scope} {endpoint}"),
    ]
    assert {f.object for f in answer.findings} == {A, B, ""}
    assert all(f.repaired for f in (await one.check(repair=True)).findings)
    await until(lambda: agent.scopes == before, "everything is as it was")
    assert await one.kinds() == []


async def test_what_a_host_says_is_told(one: Checked) -> None:
    key = f"localport/{one.uid(A)}"
    one.agent.failures = [pb.KeyFailure(key=key, reason="NetnsMissing", text="no such file")]
    await one.agent.ack()
    await until(lambda: one.store.world.port_status.rows[one.uid(A)].reason)
    (found,) = (await one.check(repair=True)).findings
    assert (found.kind, found.subject, found.object) == ("HOST_FAILS", f"hosts/h1 {key}", A)
    assert "NetnsMissing: no such file" in found.text and not found.repair
    one.agent.failures = []
    await one.agent.ack()
    await until(lambda: not one.store.world.port_status.rows[one.uid(A)].reason)


async def test_a_status_that_is_not_what_the_host_said_is_written_again(one: Checked) -> None:
    """Nobody else would: the host has no reason to say it twice."""
    key = one.store.keys.port_status(one.uid(A))
    (before,) = (await one.store.etcd.range(key)).kvs
    wrong = store_pb2.PortStatusRow.FromString(before.value)
    wrong.applied, wrong.reason = b"", "FAILED"
    for op in (put(key, wrong.SerializeToString()), delete(key)):
        await one.damage(op)
        assert await one.kinds(repair=True) == ["WRONG_STATUS"]
        await until(lambda: (row := one.store.world.port_status.rows.get(one.uid(A))) and not row.reason)
        assert await one.kinds() == []


async def test_a_host_that_does_not_answer_is_named() -> None:
    async with checked() as one:
        await one.api.host("h2", vtep="192.0.2.2")
        one.agent.acks = False
        await one.api.port("acme/late", host="hosts/h1")
        answer = await one.check(timeout=0.3)
        assert answer.silent_hosts == ["hosts/h1", "hosts/h2"] and answer.hosts == 0
        got = await one.store.etcd.txn((), [get(one.store.keys.intent(A))])
        assert got.succeeded
