"""teal rollout: what is asked for, what is shown; and rollouts with apply, get and describe."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from rich.console import Console

from tealnet import kinds
from tealnet.cli import rollout_view
from tealnet.v1 import network_pb2, rollout_pb2, split_pb2, system_pb2, tenant_pb2
from tests.cli.conftest import Teal
from tests.cli.fake_server import Fake, Refusal

WEB, DB, NAME = "tenants/acme/networks/web", "tenants/acme/networks/db", "tenants/acme/rollouts/web-2"


@pytest.fixture
def world(fake: Fake) -> Fake:
    fake.add(
        tenant_pb2.Tenant(name="tenants/acme"),
        network_pb2.Network(name=WEB, colors=["blue", "green"]),
        split_pb2.TrafficSplit(name=kinds.split_of(WEB), network=WEB, weights={"blue": 100, "green": 0}),
    )
    return fake


def entry(state: str, step: int, reason: str, text: str, second: int, actor: str = "") -> rollout_pb2.RolloutEntry:
    made = rollout_pb2.RolloutEntry(state=f"STATE_{state}", step=step, reason=reason, text=text, actor=actor)
    made.time.seconds = 1_800_000_000 + second
    return made


def shifting() -> rollout_pb2.Rollout:
    """At step 1 of 2."""
    made = rollout_pb2.Rollout(
        name=NAME, networks=[WEB], origin="blue", target="green", state="STATE_SHIFTING", step=1,
        steps=[
            rollout_pb2.RolloutStep(weights={"blue": 90, "green": 10}),
            rollout_pb2.RolloutStep(weights={"green": 100}),
        ],
        history=[
            entry("PREPARING", 0, "Started", "from blue to green", 0),
            entry("SHIFTING", 1, "GatesPassed", "step 1: blue 90, green 10", 1),
        ],
    )  # fmt: skip
    made.steps[0].hold.seconds = 60
    shares = made.status.networks.add(network=WEB, epoch=7)
    shares.colors.add(color="blue", weight=90, connections=12, opened=100)
    shares.colors.add(color="green", weight=10, connections=2, opened=11, failed=1)
    made.status.gates.add(gate="HTTP :80/ in green", result="RESULT_PASS", text="all answer")
    made.status.gates.add(gate="failed connections to green", result="RESULT_INCONCLUSIVE", text="11 connections")
    made.status.hosts.add(host="hosts/h1", epoch=7)
    made.status.hosts.add(host="hosts/h2", epoch=6)
    made.status.behind.append("hosts/h2")
    made.status.waiting = "waits for h2"
    return made


def succeeded() -> rollout_pb2.Rollout:
    made = shifting()
    made.state, made.step, made.status.waiting = rollout_pb2.Rollout.STATE_SUCCEEDED, 2, ""
    del made.status.behind[:]
    made.history.append(entry("SHIFTING", 1, "Applied", "step 1 is on all hosts", 2))
    made.history.append(entry("SUCCEEDED", 2, "Done", "the weights are green 100", 3))
    for number in (1, 2):
        step = made.status.steps.add(step=number, revision=6 + number)
        for host, late in (("hosts/h1", 0), ("hosts/h2", 2_500_000)):
            step.hosts.add(host=host).time.FromNanoseconds(10**18 + late)
        step.first_applied.FromNanoseconds(10**18)
        step.skew.nanos = 2_500_000
    return made


def test_start(world: Fake, teal: Teal) -> None:
    words = (
        "--network web --to green --step 10:60s --step 100 --gate http:8080/healthz@app=web,tier=1 "
        "--gate failed:0.5%:50 --gate https://c.example/x --gate icmp --confirm-within 5m "
        "--on-lost proceed --on-open drain --at-once"
    )
    done = teal("rollout", "start", "acme/web-2", *words.split())
    assert done.code == 0 and "acme/web-2: blue → green in web begins" in done.out, done
    method, request = world.calls[-1]
    assert method == "CreateRollout" and (request.parent, request.rollout_id) == ("tenants/acme", "web-2")
    made = request.rollout
    assert (list(made.networks), made.origin, made.target) == ([WEB], "blue", "green")
    assert [dict(step.weights) for step in made.steps] == [{"blue": 90, "green": 10}, {"green": 100}]
    assert [step.hold.seconds for step in made.steps] == [60, 0]
    http, failed, external, icmp = made.gates
    assert (http.probe.port, http.probe.path, http.probe.ports) == (8080, "/healthz", "app=web,tier=1")
    assert icmp.probe.kind == rollout_pb2.ProbeGate.KIND_ICMP
    assert (failed.failed_connections.max_percent, failed.failed_connections.min_samples) == (0.5, 50)
    assert external.external.url == "https://c.example/x"
    assert (made.confirm_within.seconds, made.drain_timeout.seconds) == (300, 300) and made.HasField("apply_at")
    assert (made.on_lost, made.on_open) == (rollout_pb2.Rollout.ON_LOST_PROCEED, split_pb2.ON_OPEN_DRAIN)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--step", "0"], "10:60s"),
        (["--step", "101"], "10:60s"),
        (["--step", "10:soon"], "not a time"),
        (["--gate", "ftp:1"], "endpoints, icmp"),
        (["--to", "blue"], "--from COLOR"),
    ],
)
def test_start_with_bad_words(world: Fake, teal: Teal, words: list[str], said: str) -> None:
    base = [] if "--to" in words else ["--to", "green"]
    done = teal("rollout", "start", "acme/web-2", "--network", "web", *base, *words)
    assert done.code == 2 and said in done.text, done
    assert not any(method == "CreateRollout" for method, _ in world.calls)


def test_what_the_controller_refuses(world: Fake, teal: Teal) -> None:
    world.refuse[NAME] = Refusal(
        grpc.StatusCode.FAILED_PRECONDITION, "web is moved by acme/other already", reason="ROLLOUT_ACTIVE"
    )
    done = teal("rollout", "start", "acme/web-2", "--network", "web", "--to", "green")
    assert done.code == 1 and "is moved by acme/other already" in done.err


def test_commands(world: Fake, teal: Teal) -> None:
    world.add(shifting())
    for words, method, said in (
        (["pause"], "PauseRollout", "is PAUSED"),
        (["resume"], "ResumeRollout", "is SHIFTING"),
        (["advance", "--step", "1"], "AdvanceRollout", "is SHIFTING"),
        (["confirm"], "ConfirmRollout", "is SUCCEEDED"),
        (["rollback", "-m", "errors"], "RollbackRollout", "is ROLLING_BACK: errors"),
    ):
        done = teal("rollout", words[0], "acme/web-2", *words[1:])
        assert done.code == 0 and said in done.out, done
        assert world.calls[-1][0] == method
    assert next(r for m, r in world.calls if m == "AdvanceRollout").step == 1
    assert teal("rollout", "pause", "acme/nothing").code == 1


def watched(*items: rollout_pb2.Rollout) -> Any:
    def answer(_: system_pb2.WatchRequest) -> Iterator[system_pb2.WatchResponse]:
        for number, item in enumerate(items):
            kind = system_pb2.WatchResponse.TYPE_MODIFIED if number else system_pb2.WatchResponse.TYPE_ADDED
            yield system_pb2.WatchResponse(type=kind, revision=10 + number, object=system_pb2.Object(rollout=item))

    return answer


def test_watch_in_lines(world: Fake, teal: Teal) -> None:
    world.add(shifting())
    world.watch = watched(shifting(), succeeded())
    done = teal("rollout", "watch", "acme/web-2")
    assert done.code == 0, done
    lines = done.out.splitlines()
    assert lines[0] == "acme/web-2: blue → green in web"
    assert [line.split(" ", 1)[1].split(":")[0].split() for line in lines[1:5]] == [
        ["PREPARING", "Started"],
        ["SHIFTING", "step", "1", "GatesPassed"],
        ["SHIFTING", "step", "1", "Applied"],
        ["SUCCEEDED", "Done"],
    ]
    assert lines[5].endswith("all hosts have it") and len(lines) == 6
    assert next(r for m, r in world.calls if m == "Watch").parent == NAME


def test_watch_on_a_terminal(world: Fake, teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    world.add(shifting())
    world.watch = watched(shifting(), succeeded())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    done = teal("rollout", "watch", "acme/web-2")
    plain = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", done.out)
    assert done.code == 0 and "SUCCEEDED  acme/web-2: blue → green in web  step 2 of 2" in plain, done


def test_all_changes(world: Fake, teal: Teal) -> None:
    """`teal watch` tells transitions, not what hosts count meanwhile."""
    counted, later = shifting(), succeeded()
    counted.status.networks[0].colors[0].connections = 99
    later.reason = "Done"
    world.watch = watched(shifting(), counted, later)
    lines = teal("watch", "rollouts", "--count", "3").out.splitlines()
    assert len(lines) == 2 and "state SHIFTING → SUCCEEDED" in lines[1], lines


def test_watch_of_one_that_is_rolled_back(world: Fake, teal: Teal) -> None:
    item = shifting()
    item.state = rollout_pb2.Rollout.STATE_ROLLED_BACK
    item.history.append(entry("ROLLING_BACK", 1, "GateFailed", "HTTP :80/ in green: status 500", 2))
    item.history.append(entry("ROLLED_BACK", 1, "Done", "the weights are those from before", 3))
    world.add(item)
    world.watch = watched(item)
    done = teal("rollout", "watch", "acme/web-2")
    assert done.code == 1 and "GateFailed: HTTP :80/ in green: status 500" in done.err


def test_the_screen() -> None:
    console = Console(width=110, record=True, color_system=None, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(rollout_view.screen(shifting()))
    text = console.export_text()
    for part in (
        "SHIFTING  acme/web-2: blue → green in web  step 1 of 2", "waits for h2", "90 %", "1 (9.1%)", "▶ step 1",
        "✓ HTTP :80/ in green", "… failed connections", "without it: h2", "hold 60 s",
    ):  # fmt: skip
        assert part in text, text
    console.print(rollout_view.screen(succeeded()))
    assert "skew 2.5 ms" in console.export_text()
    console.print(rollout_view.screen(rollout_pb2.Rollout(name=NAME, state="STATE_CONFIRMING")))
    assert "teal rollout confirm acme/web-2" in console.export_text()


def test_lines_say_what_is_new_only() -> None:
    before, now = shifting(), shifting()
    assert list(rollout_view.lines(before, now)) == []
    now.status.gates[1].result = rollout_pb2.GateStatus.RESULT_PASS
    now.status.networks[0].colors[0].connections = 99  # changes all the time: nothing to tell
    assert len(list(rollout_view.lines(before, now))) == 1


def test_history(world: Fake, teal: Teal) -> None:
    world.add(succeeded())
    done = teal("rollout", "history", "acme/web-2")
    assert done.code == 0 and "GatesPassed" in done.out and "2.5 ms" in done.out and "h2+2.5ms" in done.out
    found = json.loads(teal("rollout", "history", "acme/web-2", "-o", "json").out)
    assert [one["reason"] for one in found] == ["Started", "GatesPassed", "Applied", "Done"]


def test_get_and_describe(world: Fake, teal: Teal) -> None:
    world.add(shifting())
    assert teal("get", "rollouts").out.splitlines()[1].split() == [
        "acme", "web-2", "web", "blue→green", "SHIFTING", "1/2",
    ]  # fmt: skip
    text = teal("describe", "rollout", "acme/web-2").out
    for part in ("SHIFTING", "blue → green in web", "1: blue 90, green 10, hold 60 s", "waits for h2"):
        assert part in text, text


def test_apply(world: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "rollout.yaml"
    document: dict[str, Any] = {
        "kind": "Rollout", "tenant": "acme", "name": "web-2", "networks": ["web"], "target": "green", "deadline": "30m",
        "steps": [{"weights": {"blue": 90, "green": 10}, "hold": "60s"}, {"weights": {"green": 100}}],
        "gates": [
            {"endpoints": {}},
            {"probe": {"kind": "HTTP", "port": 80, "path": "/", "network": "web"}},
            {"failed_connections": {"max_percent": 0.5}},
        ],
        "on_lost": "PROCEED",
    }  # fmt: skip
    file.write_text(yaml.safe_dump(document))
    done = teal("apply", "-f", file)
    assert done.code == 0 and "rollout acme/web-2 created" in done.text, done
    made = next(request.rollout for method, request in world.calls if method == "CreateRollout")
    assert list(made.networks) == [WEB] and made.gates[1].probe.network == WEB
    assert made.gates[0].HasField("endpoints") and made.deadline.seconds == 1800
    assert teal("apply", "-f", file).out.strip() == "rollout acme/web-2 unchanged"
    exported = tmp_path / "again.yaml"
    exported.write_text(teal("get", "rollouts", "-o", "yaml").out)
    assert "unchanged" in teal("apply", "-f", exported).out, "an export can be applied"
    document["states"] = 1
    file.write_text(yaml.safe_dump(document))
    wrong = teal("apply", "-f", file)
    assert wrong.code == 2 and "states" in wrong.err and "did you mean steps?" in wrong.err


def test_a_rollout_waits_for_its_network(world: Fake, teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "all.yaml"
    file.write_text(
        "kind: Rollout\ntenant: acme\nname: r\nnetworks: [db]\ntarget: green\nsteps: [{weights: {green: 1}}]\n---\n"
        "kind: Network\ntenant: acme\nname: db\ncidrs: [10.0.0.0/24]\ncolors: [blue, green]\n"
    )
    world.refuse[DB] = Refusal(grpc.StatusCode.INVALID_ARGUMENT, "no", reason="INVALID_FIELDS")
    done = teal("apply", "-f", file)
    assert done.code == 1 and "rollout acme/r skipped: network acme/db failed" in done.err
