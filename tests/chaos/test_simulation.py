"""The simulation itself: that it finds what it is there to find, and a few histories and promises of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tealnet.agent.v1 import agent_pb2 as pb
from tests.chaos.history import Done, violations
from tests.chaos.operations import Call
from tests.chaos.skew import UNKNOWN, Released, later

KEY = "tenants/t1/ports/p1"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose clocks and chance it may take over."""
    return subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, timeout=110)


def test_a_few_histories() -> None:
    done = run("tests.chaos", "--only", "sim", "--minutes", "0.5", "--most", "8")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("name", ["tenant_deleted_while_hosts_are_away", "keys_removed_by_hand"])
def test_promises_about_many_ports(name: str) -> None:
    done = run("tests.chaos.promises", name)
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)


def test_messages_of_a_later_version_are_marked_all_over_and_those_of_an_earlier_one_are_not() -> None:
    hello = pb.Hello(boot_id="b", lineage=pb.Lineage(number=1), scopes=[pb.ScopeDigest(scope="host", count=1)])
    plain = pb.FromAgent(hello=hello).SerializeToString()
    marked = later(plain, pb.FromAgent)
    assert marked.count(UNKNOWN) == 4 and pb.FromAgent.FromString(marked).hello.lineage.number == 1
    assert Released()(marked, pb.FromAgent) == plain


# -- the checker of histories


def call(act: str, token: str = "", result: str = "ok", value: str = "?", *, at: tuple[float, float]) -> Done:
    request = Call("port", act, None, KEY, act, token)
    return Done(request, 0, at[0], at[1] if result != "unknown" else float("inf"), result, value)


GOOD = {
    "one after the other": (
        [
            call("create", "a", at=(0, 1)),
            call("update", "b", at=(2, 3)),
            call("read", value="b", at=(4, 5)),
            call("delete", at=(6, 7)),
            call("read", result="missing", at=(8, 9)),
        ],
        "",
    ),
    "at the same time": (
        [call("create", "a", at=(0, 5)), call("update", "b", at=(1, 6)), call("read", value="a", at=(2, 3))],
        "b",
    ),
    "deleted by both": (
        [call("create", "a", at=(0, 1)), call("delete", at=(2, 5)), call("delete", at=(3, 6))],
        "",
    ),
    "a lost answer that was done": ([call("create", "a", result="unknown", at=(0, 1))], "a"),
    "a lost answer that was not": ([call("create", "a", result="unknown", at=(0, 1))], ""),
    "a lost answer that is done late": (
        [
            call("create", "a", at=(0, 1)),
            call("update", "b", result="unknown", at=(2, 3)),
            call("read", value="a", at=(4, 5)),
        ],
        "b",
    ),
}
BAD = {
    "an acknowledged write is lost": ([call("create", "a", at=(0, 1)), call("update", "b", at=(2, 3))], "a"),
    "a read of the past": (
        [call("create", "a", at=(0, 1)), call("update", "b", at=(2, 3)), call("read", value="a", at=(4, 5))],
        "b",
    ),
    "a refused write was done": (
        [call("create", "a", at=(0, 1)), call("update", "b", result="failed", at=(2, 3))],
        "b",
    ),
    "there and not there": (
        [call("create", "a", at=(0, 1)), call("read", result="missing", at=(2, 3))],
        "a",
    ),
    "deleted twice": (
        [call("create", "a", at=(0, 1)), call("delete", at=(2, 3)), call("delete", at=(4, 5))],
        "",
    ),
    "created twice": ([call("create", "a", at=(0, 1)), call("create", "b", at=(2, 3))], "b"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_one_store_could_show_is_accepted(name: str) -> None:
    history, final = GOOD[name]
    assert violations(history, {KEY: final} if final else {}) == []


@pytest.mark.parametrize("name", BAD)
def test_what_no_store_could_show_is_found(name: str) -> None:
    history, final = BAD[name]
    assert violations(history, {KEY: final} if final else {})


def test_reads_that_go_back_are_found() -> None:
    first, second = call("look", value="b", at=(0, 1)), call("look", value="a", at=(2, 3))
    first.revision, second.revision = 7, 5
    assert violations([first, second], {})
