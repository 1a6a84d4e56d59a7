"""get, describe, create, move, delete, edit: what they send, print and exit with."""

from __future__ import annotations

import json
from pathlib import Path

import grpc
import pytest
import yaml

from tealnet.v1 import common_pb2, host_pb2, network_pb2, port_pb2, system_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal

WEB, PORT = "tenants/acme/networks/web", "tenants/acme/ports/web-1"


def port(name: str = PORT, **fields: object) -> port_pb2.Port:
    made = port_pb2.Port(name=name, network=WEB, host="hosts/h1", addresses=["10.0.0.5"], **fields)  # type: ignore[arg-type]
    made.status.state = port_pb2.PortStatus.STATE_ACTIVE
    return made


@pytest.fixture
def world(fake: Fake) -> Fake:
    host = host_pb2.Host(name="hosts/h1", vtep="192.0.2.1")
    host.status.state = host_pb2.Host.STATE_READY
    fake.add(
        host,
        tenant_pb2.Tenant(name="tenants/acme", state=tenant_pb2.Tenant.STATE_ACTIVE),
        network_pb2.Network(name=WEB, cidrs=["10.0.0.0/24"]),
        port(),
    )
    return fake


# ---- get


def test_tables_are_stable(world: Fake, teal: Teal) -> None:
    assert teal("get", "ports").out == (
        "TENANT  NAME   NETWORK  HOST  ADDRESSES  STATE\n"
        "acme    web-1  web      h1    10.0.0.5   ACTIVE\n"
    )  # fmt: skip
    assert teal("get", "hosts", "-o", "wide").out.split()[:4] == ["NAME", "STATE", "VTEP", "PORTS"]
    assert teal("get", "all").out.count("\n\n") == 3  # no routers
    assert teal("get", "all", "-t", "acme").out.startswith("TENANT  NETWORK")


def test_data_is_a_list_unless_one_is_named(world: Fake, teal: Teal) -> None:
    (listed,) = json.loads(teal("get", "ports", "-o", "json").out)
    named = json.loads(teal("get", "port", "acme/web-1", "-o", "json").out)
    assert listed == named
    assert named["kind"] == "Port" and named["addresses"] == ["10.0.0.5"]
    assert named["status"]["state"] == "ACTIVE", "without the prefix of the enum, as documents have it"
    assert json.loads(teal("get", "routers", "-o", "json").out) == []
    assert yaml.safe_load(teal("get", "networks,ports", "-o", "yaml").out)[1]["name"] == PORT


@pytest.mark.parametrize(
    "words",
    [("port", "acme/web-1"), ("ports", PORT), ("port/acme/web-1",), (PORT,), ("po", "web-1", "-t", "acme")],
)
def test_an_object_has_many_spellings(world: Fake, teal: Teal, words: tuple[str, ...]) -> None:
    assert teal("get", *words, "-o", "name").out == f"{PORT}\n"


def test_nothing_found_is_no_error(world: Fake, teal: Teal) -> None:
    done = teal("get", "routers")
    assert (done.code, done.out, done.err) == (0, "", "no routers found\n")
    assert teal("get", "ports", "-l", "app=nope").code == 0


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("get",), 2, "Missing argument 'KIND"),
        (("get", "pots"), 2, "did you mean 'ports'"),
        (("get", "port", "web-1"), 2, "which tenant? Say TENANT/NAME"),
        (("get", "port", "a/b/c"), 2, "write NAME, TENANT/NAME or tenants/TENANT/ports/NAME"),
        (("get", "port", ""), 2, "'' is not a name"),
        (("get", "networks,ports", "acme/web"), 2, "write KIND/NAME"),
        (("get", "acme/web"), 2, "does not say which kind: write `port acme/web`"),
        (("get", "port", WEB), 2, "is not the name of a port"),
        (("get", "host", "a/h1"), 2, "write NAME"),
        (("get", "port", "acme/none"), 1, "tenants/acme/ports/none not found"),
        (("get", "port", "acme/web-1", "-l", "a=b"), 2, "leave out the names"),
        (("get", "ports", "-t", "a/b"), 2, "is not the name of a tenant"),
        (("get", "ports", "-o", "xml"), 2, "'xml' is not one of"),
        (("gett",), 2, "Did you mean get"),
        (("host", "drane"), 2, "Did you mean drain"),
        (("--request-timeout", "soon", "get", "ports"), 2, "is not a time like"),
        (("get", "port", "acme/\udcff"), 2, "not UTF-8"),
    ],
)
def test_what_is_wrong_with_words(world: Fake, teal: Teal, words: tuple[str, ...], code: int, text: str) -> None:
    done = teal(*words)
    assert (done.code, text in done.err) == (code, True), done


# ---- describe


def test_describe_says_state_conditions_and_what_lives_there(world: Fake, teal: Teal) -> None:
    remark = common_pb2.Condition(type="AddressesLow", text="3 are free", remedy="add a CIDR")
    world.objects[WEB].status.conditions.append(remark)
    world.events.append(system_pb2.Event(name=WEB, reason="Created", actor="admin"))
    text = teal("describe", "network", "acme/web").out
    for part in ("network acme/web", "10.0.0.0/24", "web-1 10.0.0.5 ACTIVE on h1", "! AddressesLow: 3 are free",
                 "what to do: add a CIDR", "Created"):  # fmt: skip
        assert part in text
    assert "uid" not in text
    assert "carries  acme/web-1" in teal("describe", "host", "h1").out
    assert "ACTIVE" in teal("describe", "tenant/acme", "port/acme/web-1").out


# ---- create, move


def test_create_says_what_was_chosen_and_waits(world: Fake, teal: Teal) -> None:
    done = teal("create", "port", "acme/p", "--network", "web", "--host", "h1", "--address", "10.0.0.9", "--wait")
    assert done.code == 0
    assert done.out == "port acme/p created\npending on h1: 10.0.0.9; 3 of 3 hosts know it (0 ms)\n"
    made = world.objects["tenants/acme/ports/p"]
    assert (made.network, made.host) == (WEB, "hosts/h1")
    (request,) = [request for method, request in world.calls if method == "Sync"]
    assert (request.parent, request.revision) == (made.name, made.revision)
    data = json.loads(teal("create", "network", "n", "-t", "acme", "--cidr", "10.1.0.0/24", "-o", "json").out)
    assert data["name"] == "tenants/acme/networks/n"
    assert teal("create", "tenant", "new", "-o", "name").out == "tenants/new\n"


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("tenant", "acme"), 1, "tenants/acme exists already"),
        (("tenant", "x", "--label", "a"), 2, "'a' is not KEY=VALUE"),
        (("tenant", "x", "--max-ports", "-1"), 2, "--max-ports"),
        (("tenant", "x", "--issue-cert", "d"), 2, "--issue-cert needs --pki"),
        (("network", "acme/n"), 2, "Missing option '--cidr'"),
        (("router", "acme/r", "--route", "10.0.0.0/8"), 2, "is not PREFIX=NEXT_HOP"),
        (("port", "acme/p", "--network", "web", "--path", "/x", "--device", "y"), 2, "exclude each other"),
        (("port", "p", "--network", "web"), 2, "which tenant?"),
        (("port", "acme/p", "--network", "a/b/c"), 2, "is not the name of a network"),
        (("prot", "acme/p"), 2, "Did you mean port"),
    ],
)
def test_what_create_refuses(world: Fake, teal: Teal, words: tuple[str, ...], code: int, text: str) -> None:
    done = teal("create", *words)
    assert (done.code, text in done.err) == (code, True), done


def test_move_says_from_where_to_where(world: Fake, teal: Teal) -> None:
    world.add(host_pb2.Host(name="hosts/h2"))
    done = teal("move", "acme/web-1", "--to", "h2", "--no-wait")
    assert done.out == "port acme/web-1 moves from h1 to h2\n"
    assert world.objects[PORT].host == "hosts/h2"
    assert "is on h2 already" in teal("move", "acme/web-1", "--to", "h2").out


# ---- delete


def test_delete_says_who_stands_in_the_way(world: Fake, teal: Teal) -> None:
    done = teal("delete", "tenant", "acme")
    assert done.code == 1
    assert f"tenants/acme is in use by {WEB}" in done.err and "--cascade" in done.err
    assert done.err.count(WEB) == 1, "the blocker is named once"


def test_delete_asks_before_a_cascade(world: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115
    done = teal("delete", "tenant", "acme", "--cascade")
    assert done.code == 1 and "--yes" in done.err and "port acme/web-1" in done.err
    assert PORT in world.objects
    assert teal("delete", "tenant", "acme", "--cascade", "--yes").out == "tenant acme deleted\n"
    assert PORT not in world.objects


def test_delete_goes_on_and_counts(world: Fake, teal: Teal) -> None:
    world.add(port("tenants/acme/ports/web-2"))
    done = teal("delete", "ports", "acme/web-1", "acme/none", "acme/web-2")
    assert done.code == 1 and "1 of 3" in done.err
    assert done.out == "port acme/web-1 deleted\nport acme/web-2 deleted\n"
    assert teal("delete", "port", "acme/none", "--ignore-missing").code == 0
    done = teal("delete", "port", "acme/none")
    assert done.code == 1 and done.err == "tenants/acme/ports/none not found\nerror: nothing was deleted\n"


def test_delete_by_label_file_and_the_wrong_way(world: Fake, teal: Teal, tmp_path: Path) -> None:
    world.add(port("tenants/acme/ports/web-2", labels={"app": "x"}))
    assert teal("delete", "ports", "-l", "app=x", "--yes").out == "port acme/web-2 deleted\n"
    file = tmp_path / "f.yaml"
    file.write_text("kind: Network\ntenant: acme\nname: web\n---\nkind: Port\ntenant: acme\nname: web-1\n")
    assert teal("delete", "-f", file).out == "port acme/web-1 deleted\nnetwork acme/web deleted\n"
    assert teal("delete", "-f", file).out.count("is not there") == 2
    for words in ((), ("ports",), ("port", "acme/x", "-f", file)):
        assert teal("delete", *words).code == 2


def test_delete_waits_for_the_ports_network(world: Fake, teal: Teal) -> None:
    world.sync = lambda request: system_pb2.SyncResponse(hosts=2, synced=1, lost=["hosts/h2"])
    done = teal("delete", "port", "acme/web-1", "--wait")
    assert done.code == 3 and "h2 is lost" in done.err and "teal host fence h2" in done.err
    assert [request.parent for method, request in world.calls if method == "Sync"] == [WEB]


# ---- edit


def test_edit_sends_what_was_changed_and_nothing_else(world: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "sed -i s/10.0.0.0/10.9.0.0/")
    assert teal("edit", "network", "acme/web").out == "network acme/web changed\n"
    assert list(world.objects[WEB].cidrs) == ["10.9.0.0/24"]
    (request,) = [request for method, request in world.calls if method == "UpdateNetwork"]
    assert list(request.update_mask.paths) == ["cidrs"] and request.network.etag
    monkeypatch.setenv("EDITOR", "true")
    done = teal("edit", "network", "acme/web")
    assert (done.code, done.err) == (0, "nothing was changed\n")


def test_edit_overwrites_nobody(world: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    world.refuse[WEB] = Refusal(grpc.StatusCode.ABORTED, "changed meanwhile", reason="ABORTED")
    monkeypatch.setenv("EDITOR", "sed -i s/10.0.0.0/10.9.0.0/")
    done = teal("edit", "network", "acme/web")
    assert done.code == 1 and "edit it again" in done.err
    monkeypatch.setenv("EDITOR", "sed -i s/cidrs/cidr/")
    done = teal("edit", "network", "acme/web")
    assert done.code == 1 and "did you mean cidrs?" in done.err
