"""The judge of flips, on histories by hand; and the load, on this machine's loopback."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections import Counter

import pytest

from tealnet.lab.flips import Answer, Flip, initial, judge, quantile
from tealnet.probe.load import KINDS, RECORD

MS = 1_000_000
CHANGES = [
    initial("blue"),
    Flip(100 * MS, 103 * MS, 120 * MS, frozenset({"green"})),
    Flip(200 * MS, 203 * MS, 220 * MS, frozenset({"blue", "green"})),
]


def answer(opened: float, word: str, *, took: float = 1.0) -> Answer:
    return Answer(int(opened * MS), int((opened + took) * MS), word)


def test_what_is_right() -> None:
    both = [answer(at, word) for at in (105, 119.5) for word in ("blue", "green")]
    good = [answer(50, "blue"), *both, answer(121, "green"), answer(199.5, "blue"), answer(230, "blue")]
    verdict = judge({"a": good}, CHANGES)
    assert (verdict.requests, verdict.failed, verdict.reset, verdict.wrong, verdict.odd) == (len(good), 0, 0, 0, ())


def test_what_is_wrong() -> None:
    for wrong in (answer(50, "green"), answer(120, "blue"), answer(150, "blue"), answer(300, "red")):
        verdict = judge({"a": [wrong]}, CHANGES)
        assert (verdict.wrong, verdict.failed) == (1, 0), wrong
        assert verdict.odd and wrong.word in str(verdict)


def test_what_fails() -> None:
    verdict = judge({"a": [answer(50, "(ECONNRESET)"), answer(60, "(timeout)", took=3000)]}, CHANGES)
    assert (verdict.failed, verdict.reset, verdict.slow, verdict.wrong) == (2, 1, 1, 0)


def test_apply_and_skew() -> None:
    """Of each client the answer that came first, not the connection that was opened first."""
    early = [answer(99, "green", took=4), answer(105, "green", took=20), answer(107, "green", took=2)]
    late = [answer(106, "blue"), answer(111, "green", took=3)]
    verdict = judge({"a": early, "b": late}, CHANGES)
    assert verdict.apply == (14.0,) and verdict.skew == (5.0,)  # the second change has no blue answer from both
    assert judge({"a": early, "b": []}, CHANGES).apply == ()


def test_quantiles() -> None:
    values = [float(value) for value in range(1, 101)]
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert quantile([7.0], 0.99) == 7.0


def test_load_tells_words_and_failures() -> None:
    """One address where a server answers, one where nobody listens, in turn."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        argv = [sys.executable, "-m", "tealnet.probe", "load", str(port), "127.0.0.1", "127.0.0.2", "--rate", "500"]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(50):
            peer, _ = server.accept()
            peer.sendall(b"blue\n")
            peer.close()
        out, _ = process.communicate(b"", timeout=15)
    said = json.loads(out.splitlines()[-1])
    found = list(RECORD.iter_unpack(base64.b64decode(said["records"])))
    words = Counter(said["words"][word] for _, _, word in found)
    assert words["blue"] == 50 and words["(ECONNREFUSED)"] >= 49, words
    opened = sorted(at for at, _, _ in found)
    assert 0.9 * 50 * 2 / 500 < (opened[-1] - opened[0]) / 1e9 < 5  # its pace, not that of the answers


@pytest.mark.parametrize("kind", KINDS)
def test_load_of_each_kind_is_answered(kind: str) -> None:
    """By a server of a word, over both families, in a network namespace of its own."""
    probe = [sys.executable, "-m", "tealnet.probe"]
    inside = 'ip link set lo up; exec "$@"'
    argv = ["unshare", "-n", "sh", "-c", inside, "sh", *probe, "answer", "8000", "green", "--echo"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdin and server.stdout and server.stdout.readline() == b"ready\n"
        words = ("load", "8000", "127.0.0.1", "::1", "--rate", "200", "--kind", kind)
        load = subprocess.Popen(
            ["nsenter", "-t", str(server.pid), "-n", *probe, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert load.stdout and load.stdout.readline() == b"ready\n"
        out, _ = load.communicate(timeout=15)
        server.stdin.close()
        server.wait(timeout=15)
    said = json.loads(out)
    assert said["words"] == ["green"] and len(base64.b64decode(said["records"])) >= RECORD.size
