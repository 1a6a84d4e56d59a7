"""teal color, and what colors mean for the other commands."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
import yaml

from tealnet import kinds
from tealnet.cli.color import networks_of
from tealnet.cli.session import Session
from tealnet.v1 import host_pb2, network_pb2, port_pb2, split_pb2, system_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal
from tests.cli.test_observe import complete

WEB, DB = "tenants/acme/networks/web", "tenants/acme/networks/db"


def split(network: str = WEB, **weights: int) -> split_pb2.TrafficSplit:
    made = split_pb2.TrafficSplit(
        name=kinds.split_of(network), network=network, weights=weights, affinity="AFFINITY_CONNECTION"
    )
    total = sum(weights.values())
    for color, weight in weights.items():
        state = split_pb2.ColorStatus.STATE_OPEN if weight else split_pb2.ColorStatus.STATE_IDLE
        made.colors.add(color=color, weight=weight, slots=weight * 256 // total, ports=3, active_ports=2, state=state)
    return made


@pytest.fixture
def world(fake: Fake) -> Fake:
    fake.add(
        host_pb2.Host(name="hosts/h1"),
        tenant_pb2.Tenant(name="tenants/acme"),
        network_pb2.Network(name=WEB, cidrs=["10.0.0.0/24"], colors=["blue", "green"]),
        network_pb2.Network(name=DB, cidrs=["10.0.1.0/24"]),
        split(blue=95, green=5),
        port_pb2.Port(name="tenants/acme/ports/web-1", network=WEB, color="blue", addresses=["10.0.0.5"]),
        port_pb2.Port(name="tenants/acme/ports/db-1", network=DB, addresses=["10.0.1.5"]),
    )
    return fake


def test_list(world: Fake, teal: Teal) -> None:
    assert teal("color", "list").out == (
        "TENANT  NETWORK  COLOR  WEIGHT  SHARE   PORTS  ACTIVE  STATE\n"
        "acme    web      blue   95      95.0 %  3      2       OPEN\n"
        "acme    web      green  5       5.0 %   3      2       OPEN\n"
    )
    assert "243/256" in teal("color", "list", "acme/web", "-o", "wide").out
    (found,) = json.loads(teal("color", "list", "-o", "json").out)
    assert found["kind"] == "TrafficSplit" and found["weights"] == {"blue": 95, "green": 5}
    assert "tenants/acme/networks/db/trafficSplit not found" in teal("color", "list", "acme/db").err
    world.objects.pop(kinds.split_of(WEB))
    none = teal("color", "list")
    assert (none.code, none.out) == (0, "") and "teal color add NETWORK COLOR" in none.err


def test_get_and_describe(world: Fake, teal: Teal) -> None:
    assert teal("get", "splits").out == (
        "TENANT  NAME  WEIGHTS          DRAINING  CLOSED  EPOCH\n"
        "acme    web   blue=95 green=5                    5\n"
    )  # fmt: skip
    assert teal("get", "split", "acme/web", "-o", "name").out == f"{WEB}/trafficSplit\n"
    assert teal("get", f"{WEB}/trafficSplit", "-o", "name").code == 0
    assert "COLORS" in teal("get", "networks").out and "blue green" in teal("get", "networks").out
    assert "COLOR" in teal("get", "ports").out.splitlines()[0]
    assert "COLOR" not in teal("get", "ports", "-l", "network=db").out
    described = teal("describe", "network", "acme/web").out
    assert "blue OPEN: weight 95 (243 of 256 connections), 2 of 3 ports active" in described
    assert "web-1 blue 10.0.0.5" in described
    assert "blue OPEN: weight 95" in teal("describe", "split", "acme/web").out
    assert "traffic" not in teal("describe", "network", "acme/db").out


def test_describe_a_network_tells_what_happened_to_its_traffic(world: Fake, teal: Teal) -> None:
    event = system_pb2.Event(name=kinds.split_of(WEB), reason="WeightsSet", text="blue=95 green=5", actor="admin")
    world.events = [event]
    for words in (["events", "split"], ["events", "network"], ["describe", "network"]):
        assert "WeightsSet" in teal(*words, "acme/web").out
    assert "WeightsSet" not in teal("describe", "network", "acme/db").out


def test_add(world: Fake, teal: Teal) -> None:
    world.objects[DB].status.ports = 1
    done = teal("color", "add", "acme/db", "blue", "green", "--wait")
    assert done.code == 0, done
    assert done.out.splitlines() == [
        "network acme/db has the colors blue green; its port is in blue", "3 of 3 hosts know it (0 ms)",
    ]  # fmt: skip
    assert "teal create port NAME --network acme/db --color green" in done.err
    request = next(request for method, request in world.calls if method == "UpdateNetwork")
    assert list(request.update_mask.paths) == ["colors"] and request.network.etag
    more = teal("color", "add", "acme/web", "red")
    assert more.out == "network acme/web has the colors blue green red\n"
    assert list(world.objects[WEB].colors) == ["blue", "green", "red"]


def test_remove(world: Fake, teal: Teal) -> None:
    assert teal("color", "remove", "acme/web", "green").out == "network acme/web has the colors blue\n"
    assert "no colors any more" in teal("color", "remove", "acme/web", "blue").out
    assert not world.objects[WEB].colors
    gone = teal("color", "remove", "acme/web", "blue")
    assert gone.code == 1 and "it has no colors" in gone.err
    text = "color blue is in use by tenants/acme/ports/web-1: delete them first"
    world.objects[WEB].colors.append("blue")
    world.refuse[WEB] = Refusal(grpc.StatusCode.FAILED_PRECONDITION, text, reason="COLOR_IN_USE")
    assert "delete them first" in teal("color", "remove", "acme/web", "blue").err


def test_a_change_in_between_is_no_error(world: Fake, teal: Teal) -> None:
    ways = [Refusal(grpc.StatusCode.ABORTED, "changed", reason="ETAG_MISMATCH")] * 2

    class Now(dict[str, Refusal]):
        def __contains__(self, name: object) -> bool:
            return bool(ways) and name == WEB

        def __getitem__(self, name: str) -> Refusal:
            return ways.pop()

    world.refuse = Now()
    assert teal("color", "add", "acme/web", "red").code == 0
    assert list(world.objects[WEB].colors) == ["blue", "green", "red"]


def test_set_weights(world: Fake, teal: Teal) -> None:
    world.add(split(DB, blue=1, green=0))
    words = ["acme/web", "blue=90", "green=10", "db", "green=3", "-t", "acme", "--on-open", "drain"]
    more = ["--drain-timeout", "10m", "--affinity", "source", "--force", "--wait"]
    done = teal("color", "set-weights", *words, *more)
    assert done.code == 0, done
    assert done.out.splitlines()[:2] == [
        "network acme/web has the weights blue=90 green=10", "network acme/db has the weights blue=0 green=3",
    ]  # fmt: skip
    request = next(request for method, request in world.calls if method == "SetWeights")
    assert request.parent == "tenants/acme" and request.force and request.drain_timeout.seconds == 600
    assert request.on_open == split_pb2.ON_OPEN_DRAIN
    assert {e.network: (dict(e.weights), e.affinity) for e in request.networks} == {
        WEB: ({"blue": 90, "green": 10}, 2), DB: ({"green": 3}, 2),
    }  # fmt: skip
    syncs = [request for method, request in world.calls if method == "Sync"]
    assert [sync.parent for sync in syncs] == [WEB, DB]
    assert all(sync.revision == world.revision for sync in syncs)
    assert [dict(world.objects[kinds.split_of(n)].weights) for n in (WEB, DB)] == [
        {"blue": 90, "green": 10}, {"blue": 0, "green": 3},
    ]  # fmt: skip
    assert yaml.safe_load(teal("color", "set-weights", "acme/web", "blue=1", "-o", "yaml").out)[0]["weights"]


def test_a_dry_run_changes_nothing(world: Fake, teal: Teal) -> None:
    revision = world.revision
    done = teal("color", "set-weights", "acme/web", "blue=1", "--dry-run", "--wait")
    assert done.out == "network acme/web would have the weights blue=1 green=0\n" and world.revision == revision


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["blue=1"], "of which network?"),
        (["acme/web"], "which weights?"),
        (["acme/web", "blue=x"], "is not COLOR=WEIGHT"),
        (["acme/web", "blue=-1"], "is not COLOR=WEIGHT"),
        (["acme/web", "blue=1", "blue=2"], "stands there twice"),
        (["acme/web", "blue=1", "acme/web", "green=2"], "stands there twice"),
        (["acme/web", "blue=1", "globex/web", "blue=1"], "one tenant at a time"),
        (["acme/web", "blue=1", "--drain-timeout", "5s"], "is for --on-open drain"),
        (["web", "blue=1"], "which tenant?"),
    ],
)
def test_what_set_weights_refuses(world: Fake, teal: Teal, words: list[str], text: str) -> None:
    done = teal("color", "set-weights", *words)
    assert done.code == 2 and text in done.err, done


def test_words_of_networks() -> None:
    assert networks_of(Session(tenant="acme"), ["web", "blue=1", "acme/db", "a=0", "b=7"]) == {
        WEB: {"blue": 1}, DB: {"a": 0, "b": 7},
    }  # fmt: skip


def test_failures_of_others_do_not_count(world: Fake, teal: Teal) -> None:
    failed = system_pb2.SyncFailure(host="hosts/h1", object="tenants/acme/ports/other", reason="NoDevice")
    world.sync = lambda _: system_pb2.SyncResponse(hosts=3, synced=3, failed=[failed])
    assert teal("color", "set-weights", "acme/web", "blue=1", "--wait").code == 0
    failed.object = kinds.split_of(WEB)
    done = teal("color", "set-weights", "acme/web", "blue=1", "--wait")
    assert done.code == 5 and "split acme/web failed: NoDevice" in done.err


@pytest.mark.parametrize("words", ["delete split acme/web", "edit split acme/web", "delete splits -l a=b"])
def test_splits_are_not_written_by_name(world: Fake, teal: Teal, words: str) -> None:
    done = teal(*words.split())
    assert done.code == 2 and "teal color set-weights" in done.err


def test_documents(world: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "f.yaml"
    file.write_text("kind: TrafficSplit\ntenant: acme\nname: web\nweights: {blue: 1}\n")
    done = teal("apply", "-f", file)
    assert done.code == 2 and f"{file}:1: kind: no document moves traffic" in done.err
    file.write_text(teal("get", "all", "-o", "yaml").out)
    assert "TrafficSplit" in file.read_text()
    again = teal("apply", "-f", file)
    assert again.code == 0, again.err
    assert not [method for method, _ in world.calls if method == "SetWeights"]


def test_initial_weights_that_differ_are_said(world: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    body = "kind: Network\ntenant: acme\nname: web\ncolors: [blue, green]\ninitial_weights: {blue: %d, green: %d}\n"
    file.write_text(body % (100, 0))
    done = teal("apply", "-f", file)
    assert done.code == 0
    assert f"the weights of acme/web are blue=95 green=5, not the initial_weights of {file}:5" in done.err
    assert "teal color set-weights" in done.err
    file.write_text(body % (190, 10))  # the same shares
    assert "note:" not in teal("apply", "-f", file).err


def test_create(world: Fake, teal: Teal) -> None:
    words = [
        "--cidr",
        "10.0.2.0/24",
        "--color",
        "blue",
        "--color",
        "green",
        "--weight",
        "blue=3",
        "--weight",
        "green=1",
    ]
    assert teal("create", "network", "acme/new", *words).code == 0
    made = world.objects["tenants/acme/networks/new"]
    assert list(made.colors) == ["blue", "green"] and dict(made.initial_weights) == {"blue": 3, "green": 1}
    assert teal("create", "port", "acme/g", "--network", "web", "--color", "green").code == 0
    assert world.objects["tenants/acme/ports/g"].color == "green"
    assert teal("create", "network", "acme/x", "--cidr", "10.0.3.0/24", "--weight", "blue").code == 2


def test_watch_tells_weights(world: Fake, teal: Teal) -> None:
    def responses(_: object) -> object:
        kind = system_pb2.WatchResponse
        first, then = split(blue=95, green=5), split(blue=0, green=100)
        yield kind(type=kind.TYPE_ADDED, revision=5, object=system_pb2.Object(split=first))
        then.closed.append("blue")
        yield kind(type=kind.TYPE_MODIFIED, revision=6, object=system_pb2.Object(split=then))

    world.watch = responses  # type: ignore[assignment]
    lines = teal("watch", "splits", "--count", "2").out.splitlines()
    assert "ADDED     split acme/web  blue=95 green=5" in lines[0]
    assert "weights.blue 95 → 0, weights.green 5 → 100, closed - → [blue]" in lines[1]


def test_completion(world: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(line: str) -> list[str]:
        return complete(teal, monkeypatch, line)

    assert look("teal color ") == ["add", "list", "remove", "set-weights"]
    assert look("teal color set-weights ") == ["acme/web"]
    assert look("teal color set-weights acme/web ") == ["blue=95", "green=5"]
    assert look("teal color set-weights acme/web blue=7 ") == ["green=5"]
    assert look("teal color remove acme/web gr") == ["green"]
    assert look("teal create port acme/x --network acme/web --color b") == ["blue"]
