"""Colors with real packets: twins, tracks, shared networks, naming and moving weights while traffic goes on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml

from tealnet import kinds
from tealnet.cli.main import run
from tealnet.client import ApiError
from tealnet.lab.flips import Flip, flip, initial
from tealnet.lab.traffic import Running, Workload
from tealnet.lab.wait import wait_for
from tealnet.v1 import host_pb2, port_pb2
from tests.lab.stand import SOON, Stand, expect_out_of_reach, expect_reached, full, pinging, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

PORT = "8000"
NOBODY = "10.1.64.0"  # from here on in network web: each address is a cached flow
WEB, DB = ("10.1.0.5", "fd01::5"), ("10.2.0.5", "fd02::5")  # the same for blue and green
COLORS = ("blue", "green")


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-colors", hosts=3) as stand:
        yield stand


@pytest.fixture
def stand(module_stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """web and db in two colors, ops in none, one router: twins on all hosts, a client of each color, and one of none.

    h1: ops-1, client-blue, client-green · h2: blue web and db · h3: green web and db
    """
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"current": "lab", "contexts": {"lab": dict(module_stand.lab.context)}}))
    monkeypatch.setenv("TEALNET_CONFIG", str(config))
    module_stand.tenant("acme")
    module_stand.router("acme/main")
    module_stand.network("acme/ops", "10.0.0.0/24", "fd00::/64", router="main")
    for network, number in (("web", 1), ("db", 2)):
        module_stand.network(f"acme/{network}", f"10.{number}.0.0/16", f"fd0{number}::/64", router="main")
        module_stand.change(f"acme/{network}", colors=COLORS)
    for color, host in zip(COLORS, ("h2", "h3"), strict=True):
        module_stand.port(f"acme/web-{color}", "web", host, color=color, addresses=WEB)
        module_stand.port(f"acme/db-{color}", "db", host, color=color, addresses=DB)
        module_stand.port(f"acme/client-{color}", "web", "h1", color=color)
    module_stand.port("acme/ops-1", "ops", "h1")
    module_stand.port("acme/ops-2", "ops", "h3")
    module_stand.sync()
    yield module_stand
    module_stand.clean()


def teal(*words: str, code: int = 0) -> str:
    """The command as a person runs it; what it says."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        ended = run(list(words))
    assert ended == code, f"{' '.join(words)}: {ended} {said.getvalue()}"
    return said.getvalue()


@contextmanager
def serving(stand: Stand, *names: str) -> Iterator[None]:
    """Each of these workloads answers with its own name."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(stand.workload(f"acme/{name}").running("answer", PORT, name))
        yield


def words(source: Workload, address: str, *, count: int = 20, kind: str = "tcp") -> dict[str, int]:
    """Who answers how many of so many new connections."""
    found: dict[str, int] = source.probe("ask", address, PORT, "--count", str(count), "--kind", kind)["words"]
    return found


def hold(source: Workload, address: str, count: int = 20) -> Any:
    """So many connections that stay open."""
    return source.running("hold", address, PORT, "--count", str(count))


def expect_held(held: Running, name: str) -> None:
    """All connections were with this one, from their first to their last question, and each was answered."""
    result = {key: held.result[key] for key in ("words", "changed", "ended", "silent")}
    assert result == {"words": {name: 20}, "changed": 0, "ended": 0, "silent": 0}, held.what


def expect_all(source: Workload, address: str, name: str, *, kind: str = "tcp") -> None:
    """Only this one answers."""
    assert words(source, address, kind=kind) == {name: 20}, source.name


def test_twins_and_tracks(stand: Stand) -> None:
    """green is a perfect twin of blue; a client reaches its own color alone, all the way down."""
    blue, green = stand.workloads("acme/web-blue", "acme/web-green")
    assert (blue.mac, blue.addresses) == (green.mac, green.addresses)
    clients = stand.workloads("acme/client-blue", "acme/client-green")
    with serving(stand, "web-blue", "web-green", "db-blue", "db-green", "ops-2"):
        for color, client, web in zip(COLORS, clients, (blue, green), strict=True):
            for address in WEB:
                expect_all(client, address, f"web-{color}")
                expect_all(client, address, f"web-{color}", kind="udp")
            for source in (client, web):
                for address in DB:
                    expect_all(source, address, f"db-{color}")
            expect_reached(client, *WEB, *DB)
            for address in stand.workload("acme/ops-2").addresses:  # without a color: shared by all
                expect_all(client, address, "ops-2")
                expect_all(client, address, "ops-2", kind="udp")


def test_green_is_tested_while_all_traffic_is_blue(stand: Stand) -> None:
    ops, client = stand.workloads("acme/ops-1", "acme/client-green")
    with serving(stand, "web-blue", "web-green", "db-blue", "db-green"):
        for address in (*WEB, *DB):
            expect_all(ops, address, "web-blue" if address in WEB else "db-blue")
            expect_all(ops, address, "web-blue" if address in WEB else "db-blue", kind="udp")
            expect_all(client, address, "web-green" if address in WEB else "db-green")
        stand.delete("acme/web-blue")
        stand.sync()
        expect_out_of_reach(ops, *WEB)  # never green, as long as that has no weight
        expect_reached(client, *WEB)


def test_a_shared_server_answers_each_twin(stand: Stand) -> None:
    """The same source address twice, and each gets its own answers."""
    with serving(stand, "ops-2"):
        target = stand.workload("acme/ops-2")
        sources = stand.workloads("acme/web-blue", "acme/web-green")
        with pinging(*((source, address) for source in sources for address in target.addresses)):
            for source in sources:
                expect_all(source, target.v4, "ops-2")
                expect_all(source, target.v6, "ops-2")


def test_weights_move_new_connections_and_no_open_one(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green", "db-blue", "db-green"):
        with hold(ops, WEB[0]) as four, hold(ops, WEB[1]) as six:
            said = teal("color", "set-weights", "acme/web", "green=1", "acme/db", "green=1", "--wait")
            assert "network acme/web has the weights blue=0 green=1" in said and "hosts know it" in said
            for address in (*WEB, *DB):  # not one goes by the old weights once --wait has returned
                expect_all(ops, address, "web-green" if address in WEB else "db-green")
                expect_all(ops, address, "web-green" if address in WEB else "db-green", kind="udp")
            for _ in range(5):
                for color in COLORS:
                    teal("color", "set-weights", "acme/web", f"{color}=1", "--wait")
                    expect_all(ops, WEB[0], f"web-{color}")
        for held in (four, six):
            expect_held(held, "web-blue")


def test_two_networks_change_color_in_one_step(stand: Stand) -> None:
    """Who opens web, then db, meets no mixed pair in a color, and without one never the new color, then the old.

    However long the switch takes to look through what it has cached.
    """
    both, changes = [full("networks", f"acme/{name}") for name in ("web", "db")], [initial("blue")]
    shared = stand.workloads("acme/ops-1", "acme/ops-2")
    colored = stand.workloads("acme/client-blue", "acme/client-green")
    with serving(stand, "web-blue", "web-green", "db-blue", "db-green"), ExitStack() as stack:
        running = [stack.enter_context(one.running("pairs", WEB[0], DB[0], PORT)) for one in (*shared, *colored)]
        for color in COLORS[::-1] * 3:
            shared[0].probe("scatter", NOBODY, "3000", "--rate", "4000")
            changes.append(flip(stand.client, {network: {color: 1} for network in both}))
            for client in shared:
                expect_all(client, DB[1], f"db-{color}")
    free, own = running[: len(shared)], running[len(shared) :]
    for color, one in zip(COLORS, own, strict=True):
        assert {tuple(words) for _, _, *words in one.result["pairs"]} == {(f"web-{color}", f"db-{color}")}
    for one in free:
        _expect_no_way_back(one.result["pairs"], changes)


def _expect_no_way_back(pairs: list[tuple[int, int, str, str]], changes: list[Flip]) -> None:
    judged, back = 0, []
    for began, ended, *words in pairs:
        if any(began <= change.called <= ended for change in changes):
            continue
        judged += 1
        change = max((change for change in changes if change.called <= began), key=lambda change: change.called)
        (color,) = change.colors
        web, db = (word.split("-")[-1] == color for word in words)
        assert began < change.synced or (web and db), f"{words}, {(began - change.synced) / 1e6:.1f} ms after Sync"
        if web > db:
            back.append(f"{words}, {(began - change.called) / 1e6:.1f} ms after the change to {color} was called")
    assert judged > 100 and not back, back


def test_canary(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"):
        teal("color", "set-weights", "acme/web", "blue=3", "green=1", "--wait")
        found = words(ops, WEB[0], count=1000)
        assert found.keys() == {"web-blue", "web-green"}
        assert 150 <= found["web-green"] <= 350, found  # 250 ± 7 standard deviations


def test_a_cut_ends_what_is_open(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"):
        with hold(ops, WEB[0]) as cut, hold(stand.workload("acme/client-blue"), WEB[0]) as own:
            teal("color", "set-weights", "acme/web", "green=1", "--wait", "--on-open", "cut")
            expect_all(ops, WEB[0], "web-green")
        assert (cut.result["ended"], cut.result["changed"]) == (20, 0)
        expect_held(own, "web-blue")  # a client of the color itself: weights are not about it
        assert "CLOSED" in teal("color", "list", "acme/web")
        teal("color", "set-weights", "acme/web", "blue=1", "--wait")
        expect_all(ops, WEB[0], "web-blue")


def test_a_drain_ends(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"), hold(ops, WEB[0]) as held:
        teal("color", "set-weights", "acme/web", "green=1", "--wait", *["--on-open", "drain", "--drain-timeout", "2s"])
        assert "DRAINING" in teal("color", "list", "acme/web")
        expect_all(ops, WEB[0], "web-green")
        wait_for(lambda: "CLOSED" in teal("color", "list", "acme/web"), seconds=15, what="the end of the drain")
        stand.sync()
    assert (held.result["ended"], held.result["changed"]) == (20, 0)


def test_a_live_network_gets_colors_and_loses_them(stand: Stand) -> None:
    """No packet is lost and no connection ends, whether the segment has a name or not; green comes beside it."""
    stand.network("acme/app", "10.3.0.0/24", "fd03::/64", router="main")
    for number in (1, 2):
        stand.port(f"acme/app-{number}", "app", f"h{number}")
    stand.sync()
    ops, one, two = stand.workloads("acme/ops-1", "acme/app-1", "acme/app-2")
    with serving(stand, "app-2", "ops-2"):
        with (
            pinging((one, two.v4), (two, one.v6), (ops, two.v4), (two, ops.v6)),
            hold(ops, two.v4) as from_ops,
            hold(one, two.v6) as inside,
            hold(two, stand.workload("acme/ops-2").v4) as to_ops,
        ):
            for _ in range(3):
                said = teal("color", "add", "acme/app", "blue", "--wait")
                assert "its 2 ports are in blue" in said
                expect_all(ops, two.v4, "app-2")
                expect_all(one, two.v6, "app-2")
                assert "no colors any more" in teal("color", "remove", "acme/app", "blue", "--wait")
                expect_all(ops, two.v6, "app-2")
            teal("color", "add", "acme/app", "blue", "green", "--wait")
            stand.port("acme/app-2g", "app", "h3", color="green", addresses=list(two.addresses))
            stand.sync()
            with serving(stand, "app-2g"):
                expect_all(ops, two.v4, "app-2")
                teal("color", "set-weights", "acme/app", "green=1", "--wait")
                expect_all(ops, two.v4, "app-2g")
                expect_all(one, two.v4, "app-2")  # blue itself
            refused = teal("color", "remove", "acme/app", "green", code=1)
            assert "COLOR" in refused or "set-weights" in refused
        for held, name in ((from_ops, "app-2"), (inside, "app-2"), (to_ops, "ops-2")):
            expect_held(held, name)


def test_a_thousand_ports_are_named_at_once(stand: Stand) -> None:
    """Every flow of the network changes, no port does, and no packet is lost. Most ports are on a host that is away."""
    with away(stand) as far:
        _name_a_thousand(stand, far)


@contextmanager
def away(stand: Stand) -> Iterator[str]:
    """A host that never comes; with its ports it goes again."""
    far = stand.client.create(kinds.HOST, ident="far", body=host_pb2.Host(vtep="192.0.2.99"))
    try:
        yield far.name
    finally:
        stand.client.delete(full("networks", "acme/app"), force=True)
        stand.client.delete(far.name)


def _name_a_thousand(stand: Stand, far: str) -> None:
    stand.network("acme/app", "10.3.0.0/20", "fd03::/64", router="main")
    request = port_pb2.BatchCreatePortsRequest(parent="tenants/acme")
    for number in range(1000):
        host = f"hosts/h{number % 2 + 1}" if number < 4 else far
        port = port_pb2.Port(network=full("networks", "acme/app"), host=host)
        request.requests.add(port_id=f"app-{number}", port=port)
    made = stand.client.call(stand.client.ports.BatchCreatePorts, request, timeout=60)
    assert all(result.HasField("port") for result in made.results)
    settle(stand)
    one, two, ops = stand.workloads("acme/app-0", "acme/app-1", "acme/ops-1")
    before = {port.name: port.revision for port in stand.client.list_all(kinds.PORT, parent="tenants/acme")}
    with serving(stand, "app-1"):
        with pinging((one, two.v4), (two, one.v6), (ops, two.v6)), hold(ops, two.v4) as held:
            for _ in range(2):
                teal("color", "add", "acme/app", "blue")
                settle(stand)
                expect_all(ops, two.v4, "app-1")
                teal("color", "remove", "acme/app", "blue")
                settle(stand)
        expect_held(held, "app-1")
    after = {port.name: port.revision for port in stand.client.list_all(kinds.PORT, parent="tenants/acme")}
    assert before == after


def settle(stand: Stand) -> None:
    """All hosts that are there have everything. A thousand ports at once may cost agents a session for a moment."""

    def settled() -> bool:
        answer = stand.client.sync(timeout=60)
        assert not answer.behind and not answer.failed, str(answer)
        return answer.synced == 3

    wait_for(settled, seconds=SOON, what="all three hosts have everything")


def test_a_colored_network_comes_to_a_router_and_leaves_it(stand: Stand) -> None:
    """Its colors become the router's tracks; connections inside it go on."""
    stand.network("acme/app", "10.3.0.0/24", "fd03::/64")
    stand.change("acme/app", colors=["green", "red"])
    address = ["10.3.0.5", "fd03::5"]
    for color in ("green", "red"):
        stand.port(f"acme/app-{color}", "app", "h2", color=color, addresses=address)
    stand.port("acme/app-own", "app", "h1", color="green")
    stand.sync()
    own, client, ops = stand.workloads("acme/app-own", "acme/client-green", "acme/ops-1")
    with serving(stand, "app-green", "app-red", "web-green"):
        with hold(own, address[0]) as inside, pinging((own, address[1])):
            for _ in range(2):
                expect_out_of_reach(client, *address)
                stand.change("acme/app", router=full("routers", "acme/main"))
                stand.sync()
                expect_all(client, address[0], "app-green")
                expect_all(own, WEB[0], "web-green")
                expect_all(ops, address[1], "app-green")
                expect_out_of_reach(stand.workload("acme/client-blue"), *address)
                stand.change("acme/app", router="")
                stand.sync()
        expect_held(inside, "app-green")


def test_what_is_refused_says_what_to_do(stand: Stand) -> None:
    with pytest.raises(ApiError) as caught:
        stand.port("acme/odd", "web", "h1", color="purple")
    assert "blue, green" in str(caught.value)
    assert "teal color set-weights acme/web" in teal("color", "remove", "acme/web", "blue", code=1)
    in_use = teal("color", "remove", "acme/web", "green", code=1)
    assert "acme/ports/web-green" in in_use and "delete them first" in in_use
    stand.change("acme/web", colors=[*COLORS, "red"])
    assert "has no ports" in teal("color", "set-weights", "acme/web", "blue=9", "red=1", code=1)
    assert "smallest share" in teal("color", "set-weights", "acme/web", "blue=999", "green=1", code=1)
