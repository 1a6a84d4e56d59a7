"""A host that knows thousands of others' addresses: how long is it silent when ovs-vswitchd is killed (B10)?"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tealnet import kinds
from tealnet.lab.wait import wait_for
from tealnet.v1 import host_pb2, port_pb2
from tests.lab.stand import SOON, Stand, expect_reached, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

ADDRESSES = 2_500  # two flows each
GOAL, DEADLINE = 1.0, 5.0  # seconds from the end of the old process; the second of a machine with other work


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """Two hosts, and a third one that is only known to exist, where most ports are."""
    with standing("t-flows", hosts=2) as stand:
        stand.client.create(kinds.HOST, ident="far", body=host_pb2.Host(vtep="192.0.2.99"))
        stand.tenant("acme")
        stand.network("acme/web", "10.1.0.0/16", "fd01::/64")
        stand.port("acme/one", "web", "h1")
        stand.port("acme/two", "web", "h2")
        for start in range(0, ADDRESSES // 2, 625):
            batch = port_pb2.BatchCreatePortsRequest(parent="tenants/acme")
            for number in range(start, start + 625):
                port = port_pb2.Port(network="tenants/acme/networks/web", host="hosts/far")
                batch.requests.add(port_id=f"p{number}", port=port)
            answer = stand.client.call(stand.client.ports.BatchCreatePorts, batch)
            assert all(result.HasField("port") for result in answer.results)
        wait_for(lambda: flows(stand) >= 2 * ADDRESSES, seconds=60, what="all flows")
        yield stand


def flows(stand: Stand) -> int:
    out = stand.lab.host("h1").output(["ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "br-int"])
    return int(out.split("flow_count=")[1].split()[0])


def test_vswitchd_killed_with_many_flows_forwards_again_soon(stand: Stand) -> None:
    one, two = stand.workloads("acme/one", "acme/two")
    expect_reached(two, one.v4)
    before = flows(stand)
    with one.running("answer", "8000", "one"), two.running("hold", one.v4, "8000", "--interval", "0.2") as held:
        stand.lab.kill("h1", "ovs-vswitchd")
        ended = time.monotonic()
        stand.lab.start("h1", "ovs-vswitchd")
        ping = ["ping", "-n", "-c1", "-W0.1", one.v4]
        wait_for(lambda: two.host.run_in_netns(two.netns, ping).returncode == 0, seconds=30, what="a ping", every=0.01)
        took = time.monotonic() - ended
        wait_for(lambda: flows(stand) >= before, seconds=SOON, what="all flows are back")
        whole = time.monotonic() - ended
    assert (held.result["words"], held.result["ended"], held.result["silent"]) == ({"one": 10}, 0, 0), held.result
    print(f"RESTART vswitchd, {before} flows: ping {took:.2f} s after the end of the old process, all {whole:.2f} s")
    assert took < DEADLINE, f"{took:.2f} s (goal {GOAL:g})"
