"""Many ports at once, Plan and join tokens."""

from __future__ import annotations

from cProfile import Profile
from typing import Any

from google.rpc import code_pb2

from controller.errors import ApiError, Invalid, NotFound, PermissionDenied
from tealnet.core.identity import Kind
from tealnet.core.pki import load_certificate, make_csr, uri_names
from tealnet.v1 import host_pb2, network_pb2, port_pb2, router_pb2, system_pb2, tenant_pb2
from tests.controller.consistent import inconsistencies
from tests.controller.writing import Replicated, become, group_name, refusal, writing


def batch(count: int, **more: Any) -> port_pb2.BatchCreatePortsRequest:
    request = port_pb2.BatchCreatePortsRequest(parent="tenants/acme", **more)
    for number in range(count):
        port = port_pb2.Port(network="tenants/acme/networks/web")
        request.requests.add(port_id=f"p{number}", port=port)
    return request


async def prepared(one: Replicated) -> None:
    await one.tenant("acme")
    await one.network("acme/web", cidrs=["10.0.0.0/22", "fd00::/64"])


async def test_a_large_batch_in_small_transactions() -> None:
    async with writing(max_ops=128) as site:
        await prepared(site.one)
        answer = await site.one.ports.BatchCreatePorts(batch(300), None)
        assert [r.port.name.rsplit("/", 1)[1] for r in answer.results] == [f"p{n}" for n in range(300)]
        assert len({a for r in answer.results for a in r.port.addresses}) == 600
        assert answer.revision == max(r.port.revision for r in answer.results)
        assert len({r.port.revision for r in answer.results}) > 1
        assert len({row.spec.identity for row in site.one.store.world.ports.rows.values()}) == 1
        assert await inconsistencies(site.one.store) == []


def changes(count: int, group: str, **more: Any) -> Any:
    """Ports p0, p1, … into a group."""
    request = port_pb2.BatchUpdatePortsRequest(parent="tenants/acme", **more)
    for number in range(count):
        port = port_pb2.Port(name=f"tenants/acme/ports/p{number}", security_groups=[group_name(group)])
        request.requests.add(port=port, update_mask={"paths": ["security_groups"]})
    return request


async def test_many_ports_change_at_once() -> None:
    async with writing(max_ops=256) as site:
        one = site.one
        await prepared(one)
        await one.group("acme/web")
        await one.ports.BatchCreatePorts(batch(100), None)
        answer = await one.ports.BatchUpdatePorts(changes(100, "acme/web", request_id="r1"), None)
        assert [r.port.name.rsplit("/", 1)[1] for r in answer.results] == [f"p{n}" for n in range(100)]
        assert all(list(r.port.security_groups) == [group_name("acme/web")] for r in answer.results)
        assert answer.revision == max(r.port.revision for r in answer.results)
        assert 1 < len({r.port.revision for r in answer.results}) < 20
        assert len({row.spec.identity for row in one.store.world.ports.rows.values()}) == 1
        assert await inconsistencies(one.store) == []
        again = await one.ports.BatchUpdatePorts(changes(100, "acme/web", request_id="r1"), None)
        assert [r.port.revision for r in again.results] == [r.port.revision for r in answer.results]
        same = await one.ports.BatchUpdatePorts(changes(100, "acme/web"), None)  # nothing to be done
        assert [r.port.etag for r in same.results] == [r.port.etag for r in answer.results]


async def test_what_of_a_change_of_many_is_refused() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)
        await one.tenant("globex")
        await one.group("acme/web")
        await one.ports.BatchCreatePorts(batch(2), None)
        request = changes(3, "acme/web")  # there is no p2
        request.requests.add(port={"name": "tenants/globex/ports/p"}, update_mask={"paths": ["description"]})
        request.requests.add().CopyFrom(request.requests[0])
        request.requests.add(port={"name": "tenants/acme/ports/p1", "etag": "old"})
        request.requests.add(port={"name": "x"})
        request.requests.add(validate_only=True)
        results = (await one.ports.BatchUpdatePorts(request, None)).results
        assert [r.HasField("port") for r in results] == [True, True, *[False] * 6]
        told = [r.error.message for r in results[2:]]
        for text, part in zip(
            told, ["p2 not found", "is not of tenants/acme", "stands twice", "stands twice", "port.name", "single"],
            strict=True,
        ):  # fmt: skip
            assert part in text, told
        request.atomic = True
        assert isinstance(await refusal(one.ports.BatchUpdatePorts(request, None)), ApiError)
        assert isinstance(await refusal(one.ports.BatchUpdatePorts(changes(0, "acme/web"), None)), Invalid)
        assert await inconsistencies(one.store) == []


async def test_what_is_in_quarantine_makes_no_create_slower() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)

        async def calls(name: str) -> int:
            """How many calls of functions a create takes: what it costs, on a busy machine, too."""
            profile = Profile()
            profile.enable()
            await one.port(f"acme/{name}")
            profile.disable()
            return sum(entry.callcount for entry in profile.getstats())

        before = min([await calls(f"before{number}") for number in range(3)])
        answer = await one.ports.BatchCreatePorts(batch(400), None)
        for result in answer.results:
            await one.delete_port(result.port.name)
        assert len(one.store.world.tombstones.rows) >= 400
        after = min([await calls(f"after{number}") for number in range(3)])
        assert after < before + 200, "it looks at each of the 400"


async def test_each_item_has_its_own_result() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)
        await one.port("acme/p1")
        request = batch(6)
        request.requests[0].port.addresses.append("10.0.0.0")
        request.requests[2].port.addresses.append("10.0.0.9")
        request.requests[3].port.addresses.append("10.0.0.9")
        request.requests[4].port_id = "p5"
        answer = await one.ports.BatchCreatePorts(request, None)
        codes = [r.error.code if r.HasField("error") else 0 for r in answer.results]
        exists, invalid = code_pb2.ALREADY_EXISTS, code_pb2.INVALID_ARGUMENT
        assert codes == [invalid, exists, 0, code_pb2.FAILED_PRECONDITION, 0, exists]
        assert "requests[0].port.addresses[0]" in answer.results[0].error.message
        assert sorted(one.store.world.ports.rows) == [f"tenants/acme/ports/{n}" for n in ("p1", "p2", "p5")]
        assert len(await site.keys("k/q")) == 4  # a network and three ports


async def test_a_name_that_is_taken_is_told_before_what_goes_with_it() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)
        await one.host("h1", vtep="192.0.2.1")
        await one.port("acme/p0", host="hosts/h1")
        assert (await refusal(one.port("acme/p0", host="hosts/h1"))).reason == "ALREADY_EXISTS"
        request = batch(3)
        for item in request.requests:
            item.port.host = "hosts/h1"
        request.requests[2].port_id = "p1"
        answer = await one.ports.BatchCreatePorts(request, None)
        exists = code_pb2.ALREADY_EXISTS
        assert [r.error.code if r.HasField("error") else 0 for r in answer.results] == [exists, 0, exists]


async def test_all_or_nothing() -> None:
    async with writing(max_ops=128) as site:
        one = site.one
        await prepared(one)
        large = await refusal(one.ports.BatchCreatePorts(batch(100, atomic=True), None))
        assert large.reason == "BATCH_TOO_LARGE"
        await one.port("acme/p3")
        assert (await refusal(one.ports.BatchCreatePorts(batch(5, atomic=True), None))).reason == "ALREADY_EXISTS"
        assert list(one.store.world.ports.rows) == ["tenants/acme/ports/p3"]
        await one.delete_port("tenants/acme/ports/p3")
        answer = await one.ports.BatchCreatePorts(batch(5, atomic=True), None)
        assert len({r.port.revision for r in answer.results}) == 1


async def test_a_batch_that_is_sent_again_goes_on_where_it_stopped() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)
        wrong = await refusal(one.ports.BatchCreatePorts(batch(1, request_id="?"), None))
        assert isinstance(wrong, Invalid) and wrong.violations[0].field == "request_id"
        request = batch(5, request_id="x" * 63)
        first = await one.ports.BatchCreatePorts(request, None)
        again = await one.ports.BatchCreatePorts(request, None)
        assert [r.port.uid for r in first.results] == [r.port.uid for r in again.results]
        request.requests.add(port_id="p9", port=port_pb2.Port(network="tenants/acme/networks/web"))
        more = await one.ports.BatchCreatePorts(request, None)
        assert [r.port.uid for r in more.results[:5]] == [r.port.uid for r in first.results]
        assert more.results[5].port.name.endswith("p9")
        assert isinstance(await refusal(one.ports.BatchCreatePorts(batch(1001), None)), Invalid)
        assert isinstance(await refusal(one.ports.BatchCreatePorts(batch(0), None)), Invalid)


# ---- plan


def plan(*objects: Any, masks: dict[int, list[str]] | None = None) -> system_pb2.PlanRequest:
    request = system_pb2.PlanRequest()
    for number, body in enumerate(objects):
        item = request.items.add()
        (name,) = (field.name for field in item.object.DESCRIPTOR.fields if field.message_type is body.DESCRIPTOR)
        getattr(item.object, name).CopyFrom(body)
        item.update_mask.paths.extend((masks or {}).get(number, []))
    return request


async def test_a_plan_sees_the_documents_before() -> None:
    async with writing() as site:
        one = site.one
        web = "tenants/acme/networks/web"
        documents = plan(
            host_pb2.Host(name="hosts/h1", vtep="192.0.2.1"),
            host_pb2.Host(name="hosts/h2", vtep="192.0.2.1"),
            tenant_pb2.Tenant(name="tenants/acme"),
            router_pb2.Router(name="tenants/acme/routers/main"),
            network_pb2.Network(name=web, cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main"),
            network_pb2.Network(
                name="tenants/acme/networks/db", cidrs=["10.0.0.0/24"], router="tenants/acme/routers/main"
            ),
            port_pb2.Port(name="tenants/acme/ports/a", network=web, host="hosts/h1", addresses=["10.0.0.9"]),
            port_pb2.Port(name="tenants/acme/ports/b", network=web, addresses=["10.0.0.9"]),
            port_pb2.Port(name="tenants/acme/ports/c", network="tenants/acme/networks/db"),
            port_pb2.Port(name="tenants/acme/ports/d", network=web),
        )
        before = await site.keys("w/o")
        answer = await one.api.planner.plan(documents)
        assert await site.keys("w/o") == before
        words = [system_pb2.PlanResult.Action.Name(r.action).removeprefix("ACTION_") for r in answer.results]
        assert words == ["CREATE", "FAIL", "CREATE", "CREATE", "CREATE", "FAIL", "CREATE", "FAIL", "FAIL", "CREATE"]
        assert answer.results[9].after.port.mac == ""
        assert not answer.results[9].after.port.addresses
        assert list(answer.results[6].after.port.addresses) == ["10.0.0.9"]


async def test_a_plan_sees_addresses_that_the_documents_before_would_take() -> None:
    async with writing() as site:
        await site.one.tenant("acme")
        name = "tenants/acme/networks/web"
        port = port_pb2.Port(name="tenants/acme/ports/p", network=name)
        request = system_pb2.PlanRequest()
        for body in (
            {"network": network_pb2.Network(name=name, cidrs=["10.0.0.0/29"])},
            {"port": port},
            {"network": network_pb2.Network(name=name, cidrs=["10.7.0.0/29"])},
        ):
            request.items.add(object=system_pb2.Object(**body))
        made, port_made, moved = (await site.one.api.planner.plan(request)).results
        assert made.action == port_made.action == system_pb2.PlanResult.ACTION_CREATE
        assert moved.action == system_pb2.PlanResult.ACTION_FAIL
        assert "tenants/acme/ports/p has an address of it" in moved.error.message


async def test_a_plan_of_what_is_there() -> None:
    async with writing() as site:
        one = site.one
        await prepared(one)
        same = network_pb2.Network(name="tenants/acme/networks/web", cidrs=["10.0.0.0/22", "fd00::/64"])
        changed = network_pb2.Network(name="tenants/acme/networks/web", description="x")
        answer = await one.api.planner.plan(plan(same, changed, masks={0: ["cidrs"], 1: ["description", "labels.a/b"]}))
        actions = [r.action for r in answer.results]
        assert actions == [system_pb2.PlanResult.ACTION_UNCHANGED, system_pb2.PlanResult.ACTION_UPDATE]
        assert answer.results[1].before.network.description == ""
        assert answer.results[1].after.network.description == "x"
        assert answer.results[1].after.network.uid
        become(Kind.TENANT_ADMIN, "globex")
        answer = await one.api.planner.plan(plan(same, host_pb2.Host(name="hosts/h1")))
        assert [r.error.code for r in answer.results] == [code_pb2.NOT_FOUND, code_pb2.PERMISSION_DENIED]


# ---- hosts and join


async def test_a_token_gets_one_certificate() -> None:
    async with writing() as site:
        one = site.one
        await one.host("h1", vtep="192.0.2.1")
        answer = await one.hosts.CreateJoinToken(host_pb2.CreateJoinTokenRequest(name="hosts/h1"), None)
        csr = make_csr("host/h1", "tealnet.local").csr_pem
        join = host_pb2.JoinRequest(host_id="h1", token=answer.token, csr_pem=csr)
        refused = [
            host_pb2.JoinRequest(host_id="h1", token="wrong", csr_pem=csr),
            host_pb2.JoinRequest(host_id="h2", token=answer.token, csr_pem=csr),
        ]
        texts = {(await refusal(one.join.Join(request, None))).text for request in refused}
        assert len(texts) == 1
        broken = host_pb2.JoinRequest(host_id="h1", token=answer.token, csr_pem=b"x")
        assert isinstance(await refusal(one.join.Join(broken, None)), Invalid)
        got = await one.join.Join(join, None)
        assert uri_names(load_certificate(got.certificate_pem, "leaf")) == ["spiffe://tealnet.local/host/h1"]
        assert isinstance(await refusal(one.join.Join(join, None)), PermissionDenied)
        become(Kind.HOST, "h1")  # whatever the request says, the certificate is for who asks
        renew = host_pb2.RenewCertificateRequest(csr_pem=make_csr("host/h2", "tealnet.local").csr_pem)
        renewed = await one.hosts.RenewCertificate(renew, None)
        assert uri_names(load_certificate(renewed.certificate_pem, "leaf")) == ["spiffe://tealnet.local/host/h1"]
        become()
        missing = host_pb2.CreateJoinTokenRequest(name="hosts/none")
        assert isinstance(await refusal(one.hosts.CreateJoinToken(missing, None)), NotFound)


async def test_hosts() -> None:
    async with writing() as site:
        one = site.one
        first = await one.host("h1", vtep="192.0.2.1")
        assert (await refusal(one.host("h2", vtep="192.0.2.1"))).reason == "VTEP_IN_USE"
        for bad in ("127.0.0.1", "fe80::1", "224.0.0.1", "0.0.0.0", "x"):
            assert isinstance(await refusal(one.host("h2", vtep=bad)), Invalid)
        await one.host("h2")
        update = host_pb2.UpdateHostRequest(host=host_pb2.Host(name="hosts/h1", vtep="192.0.2.9"))
        await one.hosts.UpdateHost(update, None)
        await one.hosts.UpdateHost(
            host_pb2.UpdateHostRequest(host=host_pb2.Host(name="hosts/h2", vtep="192.0.2.1")), None
        )
        assert len(await site.keys("k/u/vtep")) == 2
        fenced = await one.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), None)
        assert fenced.fenced and fenced.status.state == host_pb2.Host.STATE_FENCED
        again = await one.hosts.FenceHost(host_pb2.FenceHostRequest(name="hosts/h1"), None)
        assert again.revision == fenced.revision
        lift = host_pb2.UpdateHostRequest(host=host_pb2.Host(name="hosts/h1"))
        lift.update_mask.paths.append("fenced")
        assert not (await one.hosts.UpdateHost(lift, None)).fenced
        lift.host.fenced = True
        assert isinstance(await refusal(one.hosts.UpdateHost(lift, None)), Invalid)
        accepted = await one.hosts.AcceptHost(host_pb2.AcceptHostRequest(name="hosts/h1"), None)
        assert list(accepted.hosts) == ["hosts/h1"]
        assert not (await one.hosts.AcceptHost(host_pb2.AcceptHostRequest(name="hosts/-"), None)).hosts
        await one.hosts.DeleteHost(host_pb2.DeleteHostRequest(name="hosts/h1"), None)
        assert (await one.host("h1", vtep="192.0.2.9")).uid != first.uid
