"""Rollouts with real packets: a canary under load, a green that breaks, a controller that is killed, users who ask."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tealnet.client import ApiError
from tealnet.lab.traffic import Workload
from tealnet.lab.wait import wait_for
from tealnet.v1 import rollout_pb2
from tests.lab.stand import Stand, full, standing
from tests.lab.test_colors import PORT, WEB, expect_all, expect_held, hold, serving, teal

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

ADDRESS = WEB[0]


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-rollout", hosts=3) as stand:
        yield stand


@pytest.fixture
def stand(module_stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A web service in blue and green, all traffic on blue.

    h1: ops-1 (a client without color), client-green · h2: web-blue · h3: web-green
    """
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"current": "lab", "contexts": {"lab": dict(module_stand.lab.context)}}))
    monkeypatch.setenv("TEALNET_CONFIG", str(config))
    module_stand.tenant("acme")
    module_stand.router("acme/main")
    module_stand.network("acme/ops", "10.0.0.0/24", "fd00::/64", router="main")
    module_stand.network("acme/web", "10.1.0.0/24", "fd01::/64", router="main")
    module_stand.change("acme/web", colors=["blue", "green"])
    for color, host in (("blue", "h2"), ("green", "h3")):
        module_stand.port(f"acme/web-{color}", "web", host, color=color, addresses=WEB, labels={"app": "web"})
    module_stand.port("acme/client-green", "web", "h1", color="green")
    module_stand.port("acme/ops-1", "ops", "h1")
    module_stand.sync()
    yield module_stand
    module_stand.clean()


def start(*words: str, name: str = "acme/r") -> None:
    teal("rollout", "start", name, "--network", "web", "--to", "green", *words)


def shown(stand: Stand, name: str = "acme/r") -> rollout_pb2.Rollout:
    found: rollout_pb2.Rollout = stand.client.get(full("rollouts", name))
    return found


def becomes(
    stand: Stand, state: str, *, seconds: float = 30.0, holds: Callable[[rollout_pb2.Rollout], bool] = lambda _: True
) -> rollout_pb2.Rollout:
    """Wait for a state of it; a controller that is on its way up is waited for, too."""
    last = rollout_pb2.Rollout()

    def there() -> bool:
        try:
            last.CopyFrom(shown(stand))
        except ApiError:
            return False
        return rollout_pb2.Rollout.State.Name(last.state) == f"STATE_{state}" and holds(last)

    try:
        wait_for(there, seconds=seconds, what=f"{state}")
    except Exception as error:
        raise AssertionError(f"{error}: {last}") from None
    return last


@contextmanager
def load(source: Workload) -> Iterator[Counter[str]]:
    """New connections, one after the other, until the end; who answered how many?"""
    words: Counter[str] = Counter()
    over = threading.Event()

    def run() -> None:
        while not over.is_set():
            words.update(source.probe("ask", ADDRESS, PORT, "--count", "50")["words"])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield words
    finally:
        over.set()
        thread.join()


def test_a_canary_under_load(stand: Stand) -> None:
    """Not one connection fails, open ones stay where they are, and afterwards all new ones are green."""
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"), hold(ops, ADDRESS) as held:
        with load(ops) as words:
            start("--step", "25:4s", "--step", "100:2s", "--gate", f"tcp:{PORT}@app=web", "--gate", "failed:1%:20")
            said = teal("rollout", "watch", "acme/r")
        expect_all(ops, ADDRESS, "web-green")
    expect_held(held, "web-blue")
    assert words.keys() == {"web-blue", "web-green"}, words
    for part in ("step 1: blue 75, green 25", "step 2: green 100", "SUCCEEDED", "PASS"):
        assert part in said, said
    done = shown(stand)
    assert [len(step.hosts) for step in done.status.steps] == [3, 3], done.status
    assert all(step.skew.ToMilliseconds() < 1000 for step in done.status.steps)
    found = {color.color: color for color in done.status.networks[0].colors}
    assert found["green"].opened >= 20 and not found["green"].failed
    assert "skew" in teal("rollout", "history", "acme/r").lower()
    teal("color", "set-weights", "acme/web", "blue=1", "--wait")  # its weights are anybody's again
    teal("delete", "rollout", "acme/r")


def test_a_green_that_breaks_is_left_again(stand: Stand) -> None:
    """Its server stops in the middle of a hold: conntrack sees it, everything goes back, and what was green is cut."""
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue"):
        with serving(stand, "web-green"):
            start("--step", "50:60s", "--gate", "failed:20%:20")
            becomes(stand, "SHIFTING", holds=lambda rollout: rollout.reason == "Applied")
            assert set(ops.probe("ask", ADDRESS, PORT, "--count", "60")["words"]) == {"web-blue", "web-green"}
            assert shown(stand).state == rollout_pb2.Rollout.STATE_SHIFTING
        with load(ops):
            done = becomes(stand, "ROLLED_BACK")
        assert any(entry.reason == "GateFailed" for entry in done.history), done.history
        expect_all(ops, ADDRESS, "web-blue")
    assert "CLOSED" in teal("color", "list", "acme/web")
    assert "GateFailed" in teal("rollout", "watch", "acme/r", code=1)


def test_a_green_that_does_not_answer_gets_no_traffic(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue"):
        with load(ops) as words:
            start("--step", "100", "--gate", f"tcp:{PORT}@app=web")
            done = becomes(stand, "ROLLED_BACK")
        assert words.keys() == {"web-blue"}
    assert done.step == 0 and "refused" in done.text, done


def test_the_controller_is_killed_in_the_middle(stand: Stand) -> None:
    """Traffic does not notice, and the next one ends it."""
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"), hold(ops, ADDRESS) as held:
        with load(ops) as words:
            start("--step", "50:2s", "--step", "100:1s")
            becomes(stand, "SHIFTING")
            for _ in range(2):
                stand.lab.kill("controller", "controller")
                stand.lab.start("controller", "controller")
                becomes(stand, "SHIFTING", holds=lambda rollout: bool(rollout.status.waiting))
            done = becomes(stand, "SUCCEEDED", seconds=60)
        assert words.keys() == {"web-blue", "web-green"}, words
        expect_all(ops, ADDRESS, "web-green")
    expect_held(held, "web-blue")
    assert [entry.reason for entry in done.history].count("HoldOver") == 1


def test_a_user_pauses_advances_and_confirms(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"):
        start("--step", "50:10m", "--step", "100:10m", "--confirm-within", "2m", "--on-open", "cut")
        becomes(stand, "SHIFTING", holds=lambda rollout: rollout.reason == "Applied")
        assert "PAUSED" in teal("rollout", "pause", "acme/r")
        assert "resume it first" in teal("rollout", "advance", "acme/r", code=1)
        assert "belong to" in teal("color", "set-weights", "acme/web", "blue=1", code=1)
        assert "SHIFTING" in teal("rollout", "resume", "acme/r")
        with hold(ops, ADDRESS, 40) as held:
            assert shown(stand).step == 1  # about half of them are blue
            teal("rollout", "advance", "acme/r", "--step", "1")
            becomes(stand, "SHIFTING", holds=lambda rollout: rollout.step == 2 and rollout.reason == "Applied")
            expect_all(ops, ADDRESS, "web-green")
            teal("rollout", "advance", "acme/r", "--step", "2")
            becomes(stand, "CONFIRMING")
        assert 0 < held.result["ended"] < 40 and not held.result["changed"], "blue is cut, green goes on"
        assert "SUCCEEDED" in teal("rollout", "confirm", "acme/r")
        stand.sync()
        expect_all(ops, ADDRESS, "web-green")
        assert "start another one to blue" in teal("rollout", "rollback", "acme/r", code=1)


def test_nobody_confirms(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"):
        start("--step", "100", "--confirm-within", "4s")
        becomes(stand, "CONFIRMING")
        expect_all(ops, ADDRESS, "web-green")
        becomes(stand, "ROLLED_BACK")
        expect_all(ops, ADDRESS, "web-blue")


def test_all_hosts_switch_at_one_instant(stand: Stand) -> None:
    ops = stand.workload("acme/ops-1")
    with serving(stand, "web-blue", "web-green"):
        start("--step", "50:3s", "--step", "100:2s", "--at-once")
        armed = becomes(stand, "SHIFTING", holds=lambda rollout: any(host.armed for host in rollout.status.hosts))
        assert armed.step == 1
        done = becomes(stand, "SUCCEEDED")
        expect_all(ops, ADDRESS, "web-green")
    assert not any(entry.reason == "NotArmed" for entry in done.history), done.history
    done = becomes(stand, "SUCCEEDED", holds=lambda rollout: all(len(step.hosts) == 3 for step in rollout.status.steps))
    for step in done.status.steps:
        assert step.skew.ToMilliseconds() <= 200, done.status.steps
