"""sync, status, watch, events, hosts, completion, help: what is going on, and how one learns of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import grpc
import pytest

from tealnet.cli.main import teal as command
from tealnet.client import ApiError
from tealnet.follow import follow
from tealnet.v1 import common_pb2, host_pb2, port_pb2, system_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal

Sync = system_pb2.SyncResponse
Type = system_pb2.WatchResponse


# ---- sync


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (Sync(complete=True, hosts=2, synced=2), 0, ["2 of 2 hosts know it"]),
        (Sync(complete=True, hosts=1, synced=1), 0, ["1 of 1 host knows it"]),
        (Sync(complete=True), 0, ["no host needs to know it"]),
        (Sync(hosts=2, synced=1, disconnected=["hosts/h2"]), 3, ["1 of 2", "h2 is disconnected", "host fence h2"]),
        (Sync(hosts=2, synced=1, lost=["hosts/h2"]), 3, ["h2 is lost", "it may still forward", "host fence h2"]),
        (
            Sync(hosts=2, synced=1, behind=[system_pb2.HostLag(host="hosts/h2", revision=7)], lost=["hosts/h3"]),
            4,
            ["h2 is behind: it has revision 7", "h3 is lost"],
        ),
        (
            Sync(
                hosts=1,
                synced=1,
                failed=[
                    system_pb2.SyncFailure(
                        host="hosts/h1", object="tenants/acme/ports/p", reason="NoDevice", text="tap0 is not there"
                    )
                ],
            ),
            5,
            ["error: 1 failure on hosts; 1 of 1", "h1: port acme/p failed: NoDevice: tap0 is not there"],
        ),
    ],
)
def test_sync_says_who_and_exits_with_it(fake: Fake, teal: Teal, answer: Sync, code: int, words: list[str]) -> None:
    fake.sync = lambda _: answer
    done = teal("sync", "--timeout", "2s")
    assert done.code == code
    assert all(word in done.text for word in words), done


def test_a_sync_is_about_something(fake: Fake, teal: Teal) -> None:
    teal("sync", "network", "acme/web", "--revision", "7")
    teal("sync", "-t", "acme")
    teal("sync")
    asked = [(request.parent, request.revision) for method, request in fake.calls if method == "Sync"]
    assert asked == [("tenants/acme/networks/web", 7), ("tenants/acme", 0), ("", 0)]
    assert teal("sync", "host", "h1").code == 2
    assert teal("sync", "--timeout", "-1").code == 2


def test_failures_of_others_are_not_mine(fake: Fake, teal: Teal) -> None:
    other = system_pb2.SyncFailure(host="hosts/h1", object="tenants/acme/ports/other", reason="X")
    fake.sync = lambda _: Sync(hosts=1, synced=1, failed=[other])
    assert teal("create", "port", "acme/p", "--network", "web", "--wait").code == 0
    own = system_pb2.SyncFailure(host="hosts/h1", object="tenants/acme/ports/q", reason="X")
    fake.sync = lambda _: Sync(hosts=1, synced=1, failed=[other, own])
    assert teal("create", "port", "acme/q", "--network", "web", "--wait").code == 5


# ---- status, hosts, events


def host(name: str, state: Any = host_pb2.Host.STATE_READY) -> host_pb2.Host:
    return host_pb2.Host(name=f"hosts/{name}", vtep="192.0.2.1", status=host_pb2.HostStatus(state=state))


def test_status_fits_one_screen_and_shows_the_worst_first(
    fake: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINES", "24")
    fake.add(*(host(f"h{n}") for n in range(40)), host("lost", host_pb2.Host.STATE_LOST))
    remark = common_pb2.Condition(type="VtepMismatch", text="it says 192.0.2.9", remedy="set the address")
    fake.objects["hosts/h7"].status.conditions.append(remark)
    text = teal("status").out
    lines = text.splitlines()
    assert len(lines) <= 24, text
    first = lines.index(next(line for line in lines if line.startswith("HOST")))
    assert lines[first + 1].startswith("h7") and lines[first + 2].startswith("lost  LOST")
    assert "more, 0 of them in need" in text
    assert "! h7: VtepMismatch: it says 192.0.2.9" in text and "what to do: set the address" in text
    assert "FAILED" not in text, "columns that say nothing are left out"
    assert teal("status", "--all").out.count("READY") == 40
    names = [line.split()[0] for line in teal("hosts").out.splitlines()[1:]]
    assert names.index("h2") < names.index("h10"), "as people count"
    assert json.loads(teal("status", "-o", "json").out)["cluster"] == "default"


def test_what_is_done_to_hosts(fake: Fake, teal: Teal) -> None:
    done = teal("host", "add", "h4", "--vtep", "192.0.2.4", "--ttl", "2h")
    assert done.code == 0 and "teal-agent join --host h4 --server CONTROLLER:7444" in done.out
    assert "secret" in done.out and "ab" * 32 in done.out
    (request,) = [request for method, request in fake.calls if method == "CreateJoinToken"]
    assert request.ttl.seconds == 7200
    assert "exists already; this is a new token" in teal("host", "add", "h4").out
    fake.add(port_pb2.Port(name="tenants/acme/ports/p", host="hosts/h4"))
    assert "1 still there\n  port acme/p" in teal("host", "drain", "h4").out
    fake.objects["hosts/h4"].drained = True
    assert "(drained)" in teal("hosts").out and "(drained)" in teal("status").out
    assert "takes new ports" in teal("host", "undrain", "h4").out
    assert "is fenced" in teal("host", "fence", "h4", "--yes").out and fake.objects["hosts/h4"].fenced
    assert teal("host", "unfence", "h4").code == 0 and not fake.objects["hosts/h4"].fenced
    assert teal("host", "accept", "--all").out == "host h1 accepted\n"
    assert teal("host", "accept").code == 2
    assert "carries" in teal("host", "describe", "h4").out
    assert teal("hosts", "-o", "name").out == "hosts/h4\n"


def test_events_are_a_table(fake: Fake, teal: Teal) -> None:
    event = system_pb2.Event(name="tenants/acme/ports/p", reason="Updated", text="host", actor="admin")
    fake.events = [event, system_pb2.Event(name="hosts/h1", reason="Refused")]
    text = teal("events", "port", "acme/p").out
    assert (
        text.split()[:5] == ["TIME", "OBJECT", "REASON", "BY", "WHAT"] and "port acme/p  Updated  admin  host" in text
    )
    assert "host h1" in teal("events").out
    assert len(json.loads(teal("events", "-o", "json").out)) == 2
    assert teal("events", "port", "acme/none").err == "no events in the last 24 hours\n"


def test_version_without_a_controller(teal: Teal) -> None:
    done = teal("version")
    assert done.code == 0 and "controller  (no context chosen)" in done.out


def test_version_of_both_sides(fake: Fake, teal: Teal) -> None:
    assert "controller  9 (API tealnet.v1)" in teal("version").out


# ---- watch


def change(kind: int, tenant: str, revision: int, **labels: str) -> Type:
    response = Type(type=kind, revision=revision)  # type: ignore[arg-type]
    if tenant:
        found = tenant_pb2.Tenant(name=f"tenants/{tenant}", labels=labels, state=tenant_pb2.Tenant.STATE_ACTIVE)
        response.object.tenant.CopyFrom(found)
    return response


def test_watch_tells_what_is_different(fake: Fake, teal: Teal) -> None:
    def changes(_: Any) -> Iterator[Type]:
        yield change(Type.TYPE_ADDED, "a", 1)
        yield change(Type.TYPE_SYNCED, "", 1)
        yield change(Type.TYPE_MODIFIED, "a", 2, team="x")
        yield change(Type.TYPE_DELETED, "a", 3)

    fake.watch = changes
    lines = [line.split(maxsplit=2)[2].rstrip() for line in teal("watch", "tenants").out.splitlines()]
    assert lines == [
        "ADDED     tenant a  ACTIVE",
        "-- that is all there is; changes follow --",
        "MODIFIED  tenant a  labels.team - → x",
        "DELETED   tenant a",
    ]
    data = [json.loads(line) for line in teal("watch", "-o", "json", "--count", "2").out.splitlines()]
    assert [d["type"] for d in data] == ["ADDED", "SYNCED", "MODIFIED"]
    assert teal("watch", "bogus").code == 2


class Cuts:
    """A client whose streams are scripts; each ends with an error or for good."""

    def __init__(self, *streams: tuple[list[Type], ApiError | None]) -> None:
        self.streams = list(streams)
        self.resumed: list[int] = []

    def watch(self, request: system_pb2.WatchRequest) -> Iterator[Type]:
        self.resumed.append(request.resume_revision)
        responses, error = self.streams.pop(0)
        yield from responses
        if error:
            raise error


GONE = ApiError(grpc.StatusCode.UNAVAILABLE, "gone")
EXPIRED = ApiError(grpc.StatusCode.OUT_OF_RANGE, "no longer kept", reason="RESUME_EXPIRED")
A, M, D = Type.TYPE_ADDED, Type.TYPE_MODIFIED, Type.TYPE_DELETED
SYNCED = Type.TYPE_SYNCED


def told(client: Cuts, **options: Any) -> list[tuple[int, str, int]]:
    found = follow(client, system_pb2.WatchRequest(), **options)  # type: ignore[arg-type]
    return [(r.type, r.object.tenant.name.removeprefix("tenants/"), r.revision) for r in found]


def test_a_cut_watch_resumes_and_tells_nothing_twice() -> None:
    client = Cuts(
        ([change(A, "a", 1), change(SYNCED, "", 5), change(M, "a", 6, x="1")], GONE),
        # 6 may not have been told whole: it is asked for again
        ([change(M, "a", 6, x="1"), change(A, "b", 6), change(SYNCED, "", 7), change(D, "a", 8)], None),
    )
    assert told(client) == [(A, "a", 1), (SYNCED, "", 5), (M, "a", 6), (A, "b", 6), (D, "a", 8)]
    assert client.resumed == [0, 5]


def test_a_watch_that_cannot_resume_tells_the_difference() -> None:
    client = Cuts(
        ([change(A, "a", 1), change(A, "b", 2), change(A, "c", 3), change(SYNCED, "", 5)], GONE),
        ([], EXPIRED),
        ([change(A, "a", 1), change(A, "c", 9, x="1"), change(A, "d", 8), change(SYNCED, "", 10)], None),
    )
    assert told(client)[4:] == [(M, "c", 9), (A, "d", 8), (D, "b", 10)]
    assert client.resumed == [0, 5, 0]


def test_a_list_that_was_cut_begins_again() -> None:
    client = Cuts(([change(A, "a", 1)], GONE), ([change(A, "a", 1), change(A, "b", 2), change(SYNCED, "", 2)], None))
    assert told(client) == [(A, "a", 1), (A, "b", 2), (SYNCED, "", 2)]
    assert client.resumed == [0, 0]


def test_a_refused_watch_ends() -> None:
    denied = ApiError(grpc.StatusCode.PERMISSION_DENIED, "no")
    for client in (Cuts(([], denied)), Cuts(([], GONE)), Cuts(([change(SYNCED, "", 1)], GONE), ([], denied))):
        with pytest.raises(ApiError):
            told(client)
    with pytest.raises(ApiError):
        told(Cuts(([change(SYNCED, "", 1)], GONE)), patience=-1)


def test_an_expired_resume_is_said(fake: Fake, teal: Teal) -> None:
    def expired(_: Any) -> Iterator[Type]:
        raise Refusal(grpc.StatusCode.OUT_OF_RANGE, "no longer kept", reason="RESUME_EXPIRED")
        yield

    fake.watch = expired
    done = teal("watch", "--resume", "3")
    assert done.code == 1 and "Leave out --resume" in done.err


# ---- completion


def complete(teal: Teal, monkeypatch: pytest.MonkeyPatch, line: str) -> list[str]:
    with monkeypatch.context() as patch:
        patch.setenv("COMP_WORDS", line)
        patch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        patch.setenv("_TEAL_COMPLETE", "bash_complete")
        done = teal()
    assert done.err == "", done
    return [row.removeprefix("plain,") for row in done.out.split()]


def test_completion_knows_kinds_and_names(fake: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.add(host("h1"), host("h2"), tenant_pb2.Tenant(name="tenants/acme"))
    fake.add(port_pb2.Port(name="tenants/acme/ports/web-1"), port_pb2.Port(name="tenants/acme/ports/db-1"))

    def look(line: str) -> list[str]:
        return complete(teal, monkeypatch, line)

    plurals = [
        "tenants", "networks", "routers", "securityGroups", "ports", "splits", "rollouts", "policyTiers", "hosts",
    ]  # fmt: skip
    assert look("teal get ") == plurals
    assert look("teal get ne") == ["networks"]
    assert look("teal get ports ") == ["acme/db-1", "acme/web-1"]
    assert look("teal get ports -t acme w") == ["web-1"]
    assert look("teal get port/acme/d") == ["port/acme/db-1"]
    assert look("teal get hosts h1 ") == ["h2"]
    assert look("teal move acme/web-1 --to ") == ["h1", "h2"]
    assert look("teal get ports -t ") == ["acme"]
    assert look("teal --context ") == ["fake"]
    assert look("teal stat") == ["status"]


def test_completion_knows_labs(teal: Teal, monkeypatch: pytest.MonkeyPatch, labs: Path) -> None:
    assert complete(teal, monkeypatch, "teal lab kill ") == []
    for name, parts in (("default", "all"), ("blue", "switch")):
        (labs / name).mkdir()
        hosts = {host: {"number": number, "parts": parts} for number, host in ((1, "h1"), (2, "h2"))}
        content = {"mtu": 1500, "parts": parts, "family": "v4", "ready": True, "hosts": hosts}
        (labs / name / "lab.json").write_text(json.dumps(content))
    assert complete(teal, monkeypatch, "teal lab kill ") == ["h1", "h2", "controller"]
    assert complete(teal, monkeypatch, "teal lab kill h1 o") == ["ovsdb-server", "ovs-vswitchd"]
    assert complete(teal, monkeypatch, "teal lab logs controller ") == ["controller", "etcd"]
    assert complete(teal, monkeypatch, "teal lab status --name ") == ["blue", "default"]
    assert complete(teal, monkeypatch, "teal lab exec --name blue ") == ["h1", "h2"]


def test_completion_is_silent_on_failure(teal: Teal, monkeypatch: pytest.MonkeyPatch, config: Any) -> None:
    assert complete(teal, monkeypatch, "teal get ports ") == []
    config.write_text("}{")
    for line in ("teal get ports ", "teal --context ", "teal get bogus ", "teal get bogus/"):
        assert complete(teal, monkeypatch, line) == []


def test_completion_scripts(teal: Teal) -> None:
    for shell in ("zsh", "fish"):
        assert "_TEAL_COMPLETE" in teal("completion", shell).out
    assert teal("completion", "tcsh").code == 2


# ---- labs that are not there


def test_a_place_for_labs_that_cannot_be_made(teal: Teal, labs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (labs / "file").write_text("")
    monkeypatch.setenv("TEALNET_LAB_DIR", str(labs / "file" / "x"))
    monkeypatch.setattr("tealnet.lab.needs.check", lambda: None)
    done = teal("lab", "up")
    assert done.code == 1 and f"cannot make {labs}/file" in done.err and "TEALNET_LAB_DIR" in done.err


def test_what_there_is_instead(teal: Teal, labs: Path) -> None:
    done = teal("lab", "status", "--name", "blue")
    assert done.err == "error: no lab 'blue'; `teal lab up --name blue` makes one\n"
    (labs / "green").mkdir()
    assert "no lab 'blue'; there are: green (--name chooses)" in teal("lab", "status", "--name", "blue").err
    content = {"mtu": 1500, "parts": "all", "family": "v4", "ready": True}
    (labs / "green" / "lab.json").write_text(json.dumps(content | {"hosts": {"h1": {"number": 1, "parts": "all"}}}))
    done = teal("lab", "kill", "h1", "sshd", "--name", "green")
    assert "h1 has no process 'sshd'; there are: ovsdb-server, ovs-vswitchd, agent" in done.err
    logs = labs / "green" / "machines" / "h1" / "disk" / "var" / "log" / "tealnet"
    logs.mkdir(parents=True)
    (logs / "agent.log").write_text("")
    done = teal("lab", "logs", "h1", "sshd", "--name", "green")
    assert "no log of 'sshd' on h1; there are: agent" in done.err


# ---- help


def every_command(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(group, click.Group):
        for name, each in group.commands.items():
            yield from every_command(each, (*words, name))


@pytest.mark.parametrize("words", list(every_command(command)), ids=" ".join)
def test_help_teaches_with_an_example(teal: Teal, words: tuple[str, ...]) -> None:
    done = teal(*words, "--help")
    assert done.code == 0
    _, _, text = done.out.partition("\n\n")  # after the usage
    assert not [line for line in text.splitlines() if line.endswith("...")], "a command's line is cut off"
    example = f"  teal {' '.join(words)}".rstrip()
    assert example in done.out or f"$(teal {' '.join(words)}" in done.out, done.out
