"""Request ids, lost answers, validate_only, reads that must be fresh."""

from __future__ import annotations

import asyncio
from pathlib import Path

from controller.caller import current_caller
from controller.commit import Committer
from controller.draft import Draft
from controller.errors import Ambiguous, DeletedSince, Invalid, OutOfRange, Unavailable
from controller.etcd import Etcd
from controller.settings import Settings
from controller.store import Store
from tealnet.v1 import common_pb2, network_pb2, port_pb2
from tests.controller.etcd.helpers import Relay, eventually
from tests.controller.writing import Writing, refusal, services, writing


def create_port(ident: str, request_id: str, **body: object) -> port_pb2.CreatePortRequest:
    port = port_pb2.Port(network="tenants/acme/networks/web", **body)  # type: ignore[arg-type]
    return port_pb2.CreatePortRequest(parent="tenants/acme", port_id=ident, port=port, request_id=request_id)


async def with_network(site: Writing) -> None:
    await site.one.tenant("acme")
    await site.one.network("acme/web", cidrs=["10.0.0.0/24"])


async def test_a_request_that_comes_twice() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await with_network(site)
        request = create_port("p", "one-1")
        first = await one.ports.CreatePort(request, None)
        again = await two.ports.CreatePort(request, None)
        assert (again.uid, again.revision) == (first.uid, first.revision)
        other = await refusal(one.ports.CreatePort(create_port("q", "one-1"), None))
        assert other.reason == "REQUEST_ID_REUSED"
        delete = port_pb2.DeletePortRequest(name=first.name, request_id="two")
        await one.ports.DeletePort(delete, None)
        await two.ports.DeletePort(delete, None)
        gone = await refusal(one.ports.CreatePort(request, None))
        assert isinstance(gone, DeletedSince)  # not only that it is absent: it was made
        assert gone.metadata == {"name": first.name, "revision": str(first.revision)}
        bad = create_port("r", "a/b")
        assert isinstance(await refusal(one.ports.CreatePort(bad, None)), Invalid)


async def test_the_same_request_on_two_replicas_at_once() -> None:
    async with writing(replicas=2) as site:
        await with_network(site)
        request = create_port("p", "same")
        ports = await asyncio.gather(*(site.replicas[i % 2].ports.CreatePort(request, None) for i in range(10)))
        assert len({port.uid for port in ports}) == 1
        assert len(await site.keys("k/u/ip")) == 1


async def test_validate_only_compares_and_writes_nothing() -> None:
    async with writing() as site:
        one = site.one
        await with_network(site)
        before = await site.etcd.revision()
        kept = {key for key in await site.keys("") if not key.startswith(("w/b", "w/s/replica"))}
        request = create_port("p", "")
        request.validate_only = True
        port = await one.ports.CreatePort(request, None)
        assert port.addresses and not port.revision
        delete = network_pb2.DeleteNetworkRequest(name="tenants/acme/networks/web", validate_only=True)
        await one.networks.DeleteNetwork(delete, None)
        await one.port("acme/p")
        assert (await refusal(one.networks.DeleteNetwork(delete, None))).reason == "IN_USE"
        assert (await refusal(one.ports.CreatePort(request, None))).reason == "ALREADY_EXISTS"
        assert before and kept <= set(await site.keys(""))


async def test_an_answer_that_got_lost() -> None:
    """The write is found again by its write_id: the caller hears of success, and it was done once."""
    async with writing() as site:
        await with_network(site)
        relay = Relay(Path(site.endpoint.removeprefix("unix:")).parent / "relay", site.endpoint)
        await relay.open()
        try:
            async with Etcd([relay.endpoint], timeout=1.0) as etcd:
                through = services(
                    Store(etcd, site.one.store.keys, replica="through"), Settings(), site.ca, max_ops=128
                )
                await through.store.load()
                job = asyncio.create_task(through.store.run())
                await through.port("acme/first")  # takes the lease that events stand on
                relay.answers.clear()
                create = asyncio.create_task(through.port("acme/p"))

                async def is_written() -> bool:
                    return bool(await site.keys("w/o/port/acme/p"))

                await eventually(is_written)
                await relay.cut()
                relay.answers.set()
                port = await create
                assert port.revision == site.one.store.world.ports.rows[port.name].mod_revision
                assert len(await site.keys("k/u/ip")) == 2
                relay.answers.clear()
                create = asyncio.create_task(through.port("acme/q"))
                name, ports = "tenants/acme/ports/q", site.one.store.world.ports.rows

                async def is_known() -> bool:
                    return name in ports

                await eventually(is_known)
                change = port_pb2.UpdatePortRequest(port=port_pb2.Port(name=name, labels={"a": "b"}))
                change.update_mask.paths.append("labels")
                changed = await site.one.ports.UpdatePort(change, None)
                await relay.cut()
                relay.answers.set()
                assert (await create).uid == changed.uid, "another has changed it before its answer was looked for"
                await site.one.delete_port(name)
                relay.answers.clear()
                delete = asyncio.create_task(through.delete_port(port.name))

                async def is_gone() -> bool:
                    return not await site.keys("w/o/port/acme/p")

                await eventually(is_gone)
                await relay.cut()
                relay.answers.set()
                await delete
                job.cancel()
                await asyncio.gather(job, return_exceptions=True)
        finally:
            await relay.close()


async def test_a_store_that_does_not_answer() -> None:
    async with writing() as site:
        one = site.one
        await with_network(site)
        dead = Etcd([f"unix:{Path(site.endpoint.removeprefix('unix:')).parent}/nobody"], timeout=0.3)
        store = Store(dead, one.store.keys, replica="dead")
        store.world = one.store.world
        committer = Committer(store)

        def build(draft: Draft) -> None:
            draft.touch_guard("none")

        error = await refusal(committer.commit(build, patience=0.5))
        assert isinstance(error, Unavailable)
        assert not isinstance(error, Ambiguous)
        await dead.close()


async def test_reads_are_as_fresh_as_asked() -> None:
    async with writing(replicas=2) as site:
        one, two = site.replicas
        await with_network(site)
        strong = common_pb2.ReadOptions(consistency=common_pb2.ReadOptions.CONSISTENCY_STRONG)
        for number in range(20):
            made = await one.port(f"acme/p{number}")
            read = strong if number % 2 else common_pb2.ReadOptions(min_revision=made.revision)
            found = await two.ports.GetPort(port_pb2.GetPortRequest(name=made.name, read=read), None)
            assert found.uid == made.uid
        ahead = port_pb2.GetPortRequest(name=made.name, read=common_pb2.ReadOptions(min_revision=2**62))
        assert isinstance(await refusal(one.ports.GetPort(ahead, None)), OutOfRange)
        ahead.read.min_revision = -1
        assert isinstance(await refusal(one.ports.GetPort(ahead, None)), Invalid)
        assert current_caller().is_admin
