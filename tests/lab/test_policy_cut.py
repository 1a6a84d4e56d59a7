"""Open connections when their rule goes, with real sockets: CUT ends them at both ends at once, KEEP leaves them.

And whoever is denied is in the logs, without anybody having asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tealnet import kinds
from tealnet.lab.traffic import Running
from tealnet.lab.wait import wait_for
from tealnet.v1 import security_pb2
from tests.lab.stand import NETNS, NETNS_PATH, SOON, Stand, full, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

PORT, COUNT = "8000", 5
CUT, KEEP = security_pb2.ON_CHANGE_CUT, security_pb2.ON_CHANGE_KEEP
HTTP = security_pb2.SecurityRule(protocol="tcp", ports=[PORT])
ANY = security_pb2.SecurityRule()


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """h1: far (a client) · h2: near (another), db in a namespace of ours, pod in somebody else's."""
    with standing("t-policy-cut", hosts=2) as stand:
        stand.settings("h2", allow_netns=["/run/netns/*"])
        stand.tenant("acme", NETNS, NETNS_PATH)
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
        for name in ("client", "server"):
            body = security_pb2.SecurityGroup(ingress=[HTTP], egress=[ANY])
            stand.client.create(kinds.GROUP, parent="tenants/acme", ident=name, body=body)
        host = stand.lab.host("h2")
        host.output(["ip", "netns", "add", "cni-1"])
        of = {name: [full("securityGroups", f"acme/{name}")] for name in ("client", "server")}
        stand.port("acme/far", "web", "h1", security_groups=of["client"])
        stand.port("acme/near", "web", "h2", security_groups=of["client"])
        stand.port("acme/db", "web", "h2", security_groups=of["server"])
        somewhere = {"kind": NETNS_PATH, "path": "/run/netns/cni-1"}
        stand.port("acme/pod", "web", "h2", security_groups=of["server"], attachment=somewhere)
        stand.sync()
        yield stand


def change(stand: Stand, name: str, **fields: object) -> None:
    body = security_pb2.SecurityGroup(name=full("securityGroups", f"acme/{name}"), **fields)  # type: ignore[arg-type]
    stand.client.update(body, mask=list(fields))
    stand.sync()


@pytest.fixture
def held(stand: Stand) -> Iterator[list[Running]]:
    """Connections of both clients to both servers, in both families, after the rules are in place again."""
    for name in ("client", "server"):
        change(stand, name, ingress=[HTTP], egress=[ANY], on_change=KEEP)
    far, near, db, pod = stand.workloads("acme/far", "acme/near", "acme/db", "acme/pod")
    with ExitStack() as stack:
        for server in (db, pod):
            stack.enter_context(server.running("answer", PORT, server.name))
        # Few: those that are silent need two seconds to say so.
        pairs = [(far, db.v4), (far, pod.v6), (near, db.v6), (near, pod.v4)]
        made = [(one, address, ("--count", str(COUNT))) for one, address in pairs]
        with ExitStack() as clients:
            running = [clients.enter_context(one.running("hold", a, PORT, *more)) for one, a, more in made]
            yield running


@pytest.mark.parametrize("side", ["server", "client"])
def test_cut_ends_both_ends_at_once(stand: Stand, held: list[Running], side: str) -> None:
    change(stand, side, on_change=CUT)
    began = time.time()
    change(stand, side, **{"ingress" if side == "server" else "egress": []})
    synced = time.time()
    for one in held:
        one.end()
        assert one.result["ended"] == COUNT and one.result["silent"] == 0, one.result
        assert began < one.result["first_end"] and one.result["last_end"] < synced + 0.5, (one.result, synced)


def test_keep_leaves_them_open(stand: Stand, held: list[Running]) -> None:
    change(stand, "server", ingress=[])
    for one in held:
        one.end()
        assert one.result["ended"] == one.result["silent"] == 0, one.result


def test_what_another_rule_allows_too_is_cut_as_well_and_may_be_opened_again(stand: Stand, held: list[Running]) -> None:
    """The rule that has let them in is the one that counts."""
    change(stand, "server", on_change=CUT)
    change(stand, "server", ingress=[security_pb2.SecurityRule(protocol="tcp")])
    for one in held:
        one.end()
        assert one.result["ended"] == COUNT, one.result
    far, db = stand.workloads("acme/far", "acme/db")
    with far.running("hold", db.v4, PORT, "--count", "1") as again:
        again.end()
    assert again.result["ended"] == 0


def test_an_agent_that_was_away_cuts_what_has_to_be_cut(stand: Stand, held: list[Running]) -> None:
    change(stand, "server", on_change=CUT)
    stand.lab.kill("h2", "agent")
    body = security_pb2.SecurityGroup(name=full("securityGroups", "acme/server"))
    stand.client.update(body, mask=["ingress"])
    stand.lab.start("h2", "agent")
    stand.sync()
    for one in held:
        one.end()
        assert one.result["ended"] == COUNT, one.result


def test_denials_are_in_the_logs_without_being_asked(stand: Stand) -> None:
    change(stand, "server", ingress=[HTTP])
    far, db = stand.workloads("acme/far", "acme/db")
    far.probe("reach", "8099", db.v4, "--wait", "0.05")
    host = stand.lab.host("h2")

    def lines(machine: object, name: str) -> list[dict[str, object]]:
        text = (machine.disk("/var/log/tealnet") / name).read_text()  # type: ignore[attr-defined]
        found = [json.loads(line) for line in text.splitlines() if '"denied"' in line]
        return [line for line in found if line.get("target_port") == 8099 and line["protocol"] == "tcp"]

    common = {
        "port": full("ports", "acme/db"), "direction": "INGRESS", "rule": "none allows it", "source": far.v4,
        "target": db.v4,
    }  # fmt: skip
    wait_for(lambda: bool(lines(host, "agent.log")), seconds=SOON, what="a line of the agent")
    assert common.items() <= lines(host, "agent.log")[0].items()
    controller = stand.lab.controller
    wait_for(lambda: bool(lines(controller, "controller.log")), seconds=20, what="a line of the controller")
    told = lines(controller, "controller.log")[0]
    assert (common | {"remote_port": full("ports", "acme/far"), "host": "hosts/h2"}).items() <= told.items()
