"""What policy does with real sockets, beside the truth table: open connections when their rule goes (CUT ends them at
both ends at once, KEEP leaves them), errors about connections through a router, rules for one color, identities that
come and go while an agent is stopped, a rule that can't be compiled, and who is denied is in the logs without anybody
having asked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tealnet import kinds
from tealnet.lab.traffic import Running, Workload
from tealnet.lab.wait import wait_for
from tealnet.store.v1 import store_pb2
from tealnet.v1 import port_pb2, security_pb2, split_pb2
from tests.lab.stand import ACTIVE, NETNS, NETNS_PATH, READY, SOON, Stand, Store, full, standing
from tests.samples import LONG, samples

TIMES = samples(40, many=10_000)  # groups that come and go

pytestmark = [pytest.mark.lab, pytest.mark.timeout(3000 if LONG else 120)]

PORT, COUNT = "8000", 5
CUT, KEEP = security_pb2.ON_CHANGE_CUT, security_pb2.ON_CHANGE_KEEP
HTTP = security_pb2.SecurityRule(protocol="tcp", ports=[PORT])
ANY = security_pb2.SecurityRule()


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    """h1: far (a client) · h2: near (another), db in a namespace of ours, pod in somebody else's."""
    with standing("t-policy-life", hosts=2) as stand:
        stand.settings("h2", allow_netns=["/run/netns/*"])
        stand.tenant("acme", NETNS, NETNS_PATH)
        stand.router("acme/main")
        stand.network("acme/web", "10.1.0.0/24", "fd01::/64", router="main")
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
        # Few: those that are silent need two seconds to say so. Busy: an answer is under way when a rule goes.
        pairs = [(far, db.v4), (far, pod.v6), (near, db.v6), (near, pod.v4)]
        made = [(one, address, ("--count", str(COUNT), "--interval", "0.01")) for one, address in pairs]
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
    stand.host_becomes("h2", READY)
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


def words(source: Workload, address: str, *more: str) -> dict[str, int]:
    """Who answers one question."""
    found: dict[str, int] = source.probe("ask", address, PORT, *more)["words"]
    return found


def test_errors_about_a_connection_come_back_through_a_router(stand: Stand) -> None:
    """The target may send nothing by itself; that nobody listens there is said all the same, and the hop limit, too."""
    change(stand, "server", ingress=[security_pb2.SecurityRule(protocol="udp")], egress=[])
    stand.network("acme/db", "10.2.0.0/24", "fd02::/64", router="main")
    stand.port("acme/quiet", "db", "h2", security_groups=[full("securityGroups", "acme/server")])
    stand.sync()
    far, quiet = stand.workloads("acme/far", "acme/quiet")
    for address in (quiet.v4, quiet.v6):
        assert words(far, address, "--kind", "udp") == {"(Connection refused)": 1}
    assert words(quiet, far.v4, "--kind", "udp") == {"(TimeoutError)": 1}
    stand.delete("acme/quiet")
    stand.client.delete(full("networks", "acme/db"))
    change(stand, "server", ingress=[HTTP], egress=[ANY])


def test_a_rule_for_one_color(stand: Stand) -> None:
    """Clients without a color reach blue by weight; green's rule is not there."""
    change(stand, "server", ingress=[security_pb2.SecurityRule(protocol="tcp", ports=[PORT], color="blue")])
    stand.network("acme/app", "10.3.0.0/24", "fd03::/64", router="main")
    stand.change("acme/app", colors=["blue", "green"])
    group = [full("securityGroups", "acme/server")]
    for color in ("blue", "green"):
        stand.port(f"acme/{color}", "app", "h2", color=color, addresses=["10.3.0.5"], security_groups=group)
    stand.sync()
    far, blue, green = stand.workloads("acme/far", "acme/blue", "acme/green")
    with blue.running("answer", PORT, "blue"), green.running("answer", PORT, "green"):
        for color, answer in (("blue", "blue"), ("green", "(TimeoutError)")):
            request = split_pb2.SetWeightsRequest(parent="tenants/acme")
            request.networks.add(network=full("networks", "acme/app"), weights={color: 1})
            stand.client.call(stand.client.splits.SetWeights, request)
            stand.sync()
            assert words(far, "10.3.0.5") == {answer: 1}
            asked = security_pb2.TestPolicyRequest(
                source=full("ports", "acme/far"), target=full("ports", f"acme/{color}"), protocol="tcp", port=int(PORT)
            )
            assert stand.client.test_policy(asked).allowed == (color == "blue")
    for color in ("blue", "green"):
        stand.delete(f"acme/{color}")
    stand.client.delete(full("networks", "acme/app"))
    change(stand, "server", ingress=[HTTP])


def test_a_rule_that_no_host_can_compile_closes_its_direction_of_its_ports_alone(stand: Stand) -> None:
    """Such as a later release may have written: it is in the store, the API would have refused it."""
    change(stand, "server", ingress=[HTTP], egress=[ANY])
    key = "w/o/group/acme/odd"
    body = security_pb2.SecurityGroup(ingress=[HTTP], egress=[ANY])
    stand.client.create(kinds.GROUP, parent="tenants/acme", ident="odd", body=body)
    join(stand, "db", "odd")
    stand.sync()
    far, near, db, pod = stand.workloads("acme/far", "acme/near", "acme/db", "acme/pod")
    with ExitStack() as servers:
        for one in (db, pod):
            servers.enter_context(one.running("answer", PORT, one.name))
        store = Store(stand)
        good = store.get(key)
        row = store_pb2.Stored.FromString(good)
        poisoned = security_pb2.SecurityGroup.FromString(row.message)
        poisoned.ingress.add(protocol="of-tomorrow")
        row.message = poisoned.SerializeToString()
        store.put({key: row.SerializeToString()})

        def conditions(port: str) -> list[tuple[str, str]]:
            return [(found.type, found.text) for found in stand.state(port).conditions]

        wait_for(lambda: bool(conditions("acme/db")), seconds=SOON, what="a condition of db")
        ((kind, text),) = conditions("acme/db")
        assert kind == "PolicyFailed" and "odd/ingress[1]" in text, text
        assert words(far, db.v4) == words(near, db.v6) == {"(TimeoutError)": 1}
        assert words(far, pod.v4) == words(near, pod.v6) == {pod.name: 1}
        assert words(db, pod.v4) == words(db, pod.v6) == {pod.name: 1}  # its other direction is as it was
        assert [conditions(f"acme/{one}") for one in ("far", "near", "pod")] == [[], [], []]
        assert stand.state("acme/db").state == ACTIVE
        store.put({key: good})
        wait_for(lambda: not conditions("acme/db"), seconds=SOON, what="db has no condition")
        stand.sync()
        assert words(far, db.v4) == {db.name: 1}
    join(stand, "db", "server")
    stand.client.delete(full("securityGroups", "acme/odd"))
    stand.sync()


@pytest.mark.long
def test_groups_come_and_go_while_an_agent_is_stopped(stand: Stand) -> None:
    """far joins one new group after the other while db's host hears of nothing; then it is no client to db any more."""
    rule = security_pb2.SecurityRule(protocol="tcp", remote_group=full("securityGroups", "acme/client"))
    change(stand, "server", ingress=[rule])
    far, near, db = stand.workloads("acme/far", "acme/near", "acme/db")
    with db.running("answer", PORT, "db"), near.running("load", PORT, db.v4, "--rate", "20") as friend:
        assert words(far, db.v4) == {"db": 1}
        stand.lab.stop("h2", "agent")
        try:
            for number in range(TIMES):
                group = security_pb2.SecurityGroup(egress=[ANY])
                stand.client.create(kinds.GROUP, parent="tenants/acme", ident=f"n{number}", body=group)
                join(stand, "far", f"n{number}")
                if number:
                    stand.client.delete(full("securityGroups", f"acme/n{number - 1}"))
        finally:
            stand.lab.cont("h2", "agent")
        stand.host_becomes("h2", READY, seconds=120)
        stand.sync(seconds=120)
        assert words(far, db.v4) == {"(TimeoutError)": 1}
        join(stand, "far", "client")
        stand.client.delete(full("securityGroups", f"acme/n{TIMES - 1}"))
        stand.sync()
        assert words(far, db.v4) == {"db": 1}
    assert set(friend.result["words"]) == {"db"}, friend.result["words"]  # who was a client all the time
    change(stand, "server", ingress=[HTTP])


def join(stand: Stand, port: str, group: str) -> None:
    body = port_pb2.Port(name=full("ports", f"acme/{port}"), security_groups=[full("securityGroups", f"acme/{group}")])
    stand.client.update(body, mask=["security_groups"])
