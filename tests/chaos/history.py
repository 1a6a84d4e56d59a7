"""What clients saw, and whether one store that does one thing at a time could have shown it to them.

Each object is a register: absent, or the word that its last write left in its label. All writes and STRONG reads of it
must have an order in which every answer is right, and which keeps real time: what was answered before another was
asked comes before it (linearizability, by the search of Wing and Gong with what has been seen remembered). Objects are
independent, so one at a time is enough. Plain reads must never go back in time for one client (A21).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from tests.chaos.operations import Call

ANY = "?"  # an answer that says nothing of the state
GONE = ""  # the object is absent
AGAIN = 2  # times that a delete with all that an object holds may take what is made again meanwhile


@dataclass
class Done:
    """One call from its asking to its answer. Times of one monotonic clock; `returned` inf: it may still be done.

    `result`: ok, exists (create), missing (read, delete), unknown.
    """

    call: Call
    client: int
    asked: float
    returned: float = math.inf
    result: str = "unknown"
    value: str = ANY  # of a read
    revision: int = 0


@dataclass(frozen=True)
class _Op:
    key: str
    act: str
    token: str
    asked: float
    returned: float
    result: str
    value: str
    must: bool  # it was done; otherwise it may never be
    shared: bool = False  # a delete beside another one: whose answer was lost finds its object gone, and says ok


def _ops(history: Iterable[Done]) -> dict[str, list[_Op]]:
    """By key. A delete that takes others along may be a delete of each of them."""
    history = list(history)
    keys = {done.call.key for done in history if done.call.key}
    found: dict[str, list[_Op]] = {key: [] for key in keys}
    for done in history:
        call = done.call
        if call.act not in ("create", "update", "delete", "read") or done.result == "failed":
            if call.takes and done.result == "failed":  # some of it may have been done
                for key in _taken(call, keys):
                    found[key].append(_delete(done, key, must=False))
            continue
        must = done.result != "unknown"
        returned = done.returned if must else math.inf
        if call.act == "read" and not must:
            continue
        op = _Op(call.key, call.act, call.token, done.asked, returned, done.result, done.value, must)
        found[call.key].append(op)
        if call.takes:
            for key in _taken(call, keys):
                found[key] += [_delete(done, key, must=False)] * AGAIN
    return found


def _taken(call: Call, keys: Iterable[str]) -> list[str]:
    """What may go with an object: all of a tenant, the ports of a network."""
    tenant, _, network = call.key.partition("/networks/")
    below = f"{tenant}/ports/" if network else f"{tenant}/"
    return [key for key in keys if key.startswith(below) and key != call.key]


def _delete(done: Done, key: str, *, must: bool) -> _Op:
    return _Op(key, "delete", "", done.asked, math.inf if done.result == "unknown" else done.returned, "ok", ANY, must)


def _step(op: _Op, state: str) -> str | None:
    """The state after it, None if its answer could not have been given in this state."""
    match op.act, op.result:
        case "create", "ok" | "unknown":
            return op.token if state == GONE else None
        case "create", "exists":
            return state if state != GONE else None
        case "update", "ok" | "unknown":
            return op.token if state != GONE else None
        case "delete", "ok" | "unknown":
            return GONE if state != GONE or not op.must or op.shared else None
        case (("delete" | "read"), "missing"):
            return state if state == GONE else None
        case "read", "ok":
            return state if state == op.value else None
    raise AssertionError(op)


def _with_shared(ops: list[_Op]) -> list[_Op]:
    deletes = [op for op in ops if op.act == "delete" and op.result in ("ok", "unknown")]
    return [
        replace(op, shared=op in deletes and any(_overlap(op, other) for other in deletes if other is not op))
        for op in ops
    ]


def _overlap(one: _Op, other: _Op) -> bool:
    return one.asked <= other.returned and other.asked <= one.returned


def linearizable(ops: list[_Op], final: str | None = None) -> bool:
    """Whether there is an order. `final`: the state at the end, if known."""
    ops = sorted(_with_shared(ops), key=lambda op: op.asked)
    if final is not None:
        now = max((op.asked for op in ops), default=0.0) + 1e9
        act = "missing" if final == GONE else "ok"
        ops.append(_Op("", "read", "", now, now, act, final, True))
    seen: set[tuple[int, str]] = set()
    stack = [(0, GONE)]  # bits of what is done, state
    whole = sum(1 << i for i, op in enumerate(ops) if op.must)
    while stack:
        done, state = stack.pop()
        if done & whole == whole:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [(i, op) for i, op in enumerate(ops) if not done >> i & 1]
        horizon = min(op.returned for _, op in left if op.must)
        for i, op in left:
            if op.asked > horizon:
                break
            after = _step(op, state)
            if after is not None:
                stack.append((done | 1 << i, after))
            if not op.must:  # it never happened, or not yet
                stack.append((done | 1 << i, state))
    return False


def violations(history: list[Done], final: dict[str, str]) -> list[str]:
    """What is wrong with a history; `final` has the label of each object that there is in the end."""
    found = []
    for key, ops in sorted(_ops(history).items()):
        if not linearizable(ops, final.get(key, GONE)):
            lines = [f"    {op.asked:.3f}–{op.returned:.3f} {op.act} {op.token or op.value} {op.result}" for op in ops]
            found.append(f"not linearizable: {key}, in the end {final.get(key)!r}\n" + "\n".join(lines))
    return found + _backwards(history)


def _backwards(history: list[Done]) -> list[str]:
    """Plain and STRONG reads of one client never show an older object than one that it has seen, or written."""
    found = []
    seen: dict[tuple[int, str], int] = {}
    for done in sorted((d for d in history if d.revision and d.call.key), key=lambda d: d.returned):
        key = done.client, done.call.key
        if done.revision < seen.get(key, 0):
            found.append(f"client {done.client} saw {done.call.key} go back from {seen[key]} to {done.revision}")
        seen[key] = max(seen.get(key, 0), done.revision)
    return found
