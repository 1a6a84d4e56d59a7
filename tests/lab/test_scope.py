"""What a host knows: two flows for each remote address, and nothing of tenants that have no port there."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tealnet.lab import Host
from tealnet.v1 import port_pb2
from tests.lab.looks import look
from tests.lab.stand import Stand, difference, expect_reached, full, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
MANY = 40  # ports


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-scope", hosts=3) as stand:
        yield stand


@pytest.fixture
def stand(module_stand: Stand) -> Iterator[Stand]:
    """Acme has a port on h1 and one on h2, globex one on h2: the same addresses, a router each."""
    for tenant in ("acme", "globex"):
        module_stand.tenant(tenant)
        module_stand.router(f"{tenant}/main")
        module_stand.network(f"{tenant}/web", "10.1.0.0/22", "fd01::/64", router="main")
    module_stand.port("acme/web-1", "web", "h1")
    module_stand.port("acme/web-2", "web", "h2")
    module_stand.port("globex/web-2", "web", "h2")
    module_stand.sync()
    yield module_stand
    module_stand.clean()


def many(stand: Stand, tenant: str, host: str, count: int = MANY) -> None:
    """So many more ports, in one call."""
    request = port_pb2.BatchCreatePortsRequest(parent=f"tenants/{tenant}")
    for number in range(count):
        port = port_pb2.Port(network=full("networks", f"{tenant}/web"), host=f"hosts/{host}")
        request.requests.add(port_id=f"more-{number}", port=port)
    answer = stand.client.call(stand.client.ports.BatchCreatePorts, request)
    assert all(result.HasField("port") for result in answer.results), answer
    stand.sync()


def resources(host: Host) -> int:
    """How many resources its agent holds."""
    found = re.search(r"^tealnet_resources (\d+)", host.agent_http("/metrics"), re.M)
    assert found
    return int(found[1])


def test_two_flows_for_each_remote_address(stand: Stand) -> None:
    one = stand.lab.host("h1")
    before, held = look(one, "flows")["flows"], resources(one)
    many(stand, "acme", "h2")
    after = look(one, "flows")["flows"]
    assert after > before
    assert len(after - before) == 2 * 2 * MANY  # two addresses each
    assert {re.search(r"table=(\d+)", flow)[1] for flow in after - before} == {"5", "40"}  # type: ignore[index]
    assert resources(one) == held + MANY
    far = stand.workload("acme/more-7")
    expect_reached(stand.workload("acme/web-1"), far.v4, far.v6)


def test_nothing_is_known_of_tenants_without_ports_there(stand: Stand) -> None:
    one, three = stand.lab.host("h1"), stand.lab.host("h3")
    before, held = look(one), resources(one)
    many(stand, "globex", "h2")
    stand.port("globex/web-3", "web", "h3")
    stand.sync()
    assert look(one) == before, difference(before, look(one))
    assert resources(one) == held
    # With its first port of a tenant a host learns of that one alone, and with its last one it forgets.
    known = look(three, "flows")["flows"] - stand.empty["h3"]["flows"]
    assert len({found[1] for flow in known if (found := re.search(r"metadata=(0x[0-9a-f]+)/0xffffffff", flow))}) == 1
    stand.delete("globex/web-3")
    stand.sync()
    assert look(three) == stand.empty["h3"], difference(stand.empty["h3"], look(three))
