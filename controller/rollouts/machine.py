"""What comes next in a rollout: one pure function of its row, of what is observed, and of the leader's clocks.

    PENDING → PREPARING → VERIFYING → SHIFTING 1 … n → DRAINING → CONFIRMING → SUCCEEDED
    any of them → ROLLING_BACK → ROLLED_BACK        any but CONFIRMING ⇄ PAUSED (by a user: `commands`)

A `Transition` is one transaction: it compares the rollout and every split, and writes the rollout and, with `shares`,
the splits. Whoever carries it out may die at any point; whoever comes next decides anew, by the same function.

A host has a step when it is synced past it without a failure that is about it. One in session that has not is
*behind*; one without a session is silent and then *lost*, and forwards still (A11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from controller.rollouts.plan import MOVED, OnBehind, OnLost, OnRollback, Plan, Run, Shares, State, Weights
from controller.rollouts.transition import Key, Reason, Seen, Transition, Verdict
from controller.rows import OnOpen

MARGIN = 0.5  # of the lead of apply_at: so much before the instant it is decided whether it counts
_CUTTING = frozenset({Reason.GATE_FAILED, Reason.TARGET_GONE, Reason.NOT_CONFIRMED})


def decide(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    """The next transition, or None: there is something to wait for."""
    if run.is_over:
        return _over(run, seen)
    if run.state is State.PAUSED:
        if plan.pause_timeout and seen.elapsed >= plan.pause_timeout:
            text = f"it was paused for {plan.pause_timeout:g} s"
            return back(plan, run, seen, Reason.PAUSE_TIMED_OUT, text=text)
        return None
    if restored := _restored(plan, run, seen):
        return restored
    if run.state is State.ROLLING_BACK:
        return _rolling_back(plan, run, seen)
    if run.state is not State.CONFIRMING and seen.total >= plan.deadline - plan.confirm_within:
        return back(plan, run, seen, Reason.DEADLINE_PASSED, text=f"not done within {plan.deadline:g} s{_why(seen)}")
    return _STATES[run.state](plan, run, seen)


# ---- the way there


def _pending(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    return _to(run, seen, State.PREPARING, Reason.STARTED, text=f"from {plan.origin} to {plan.target}")


def _preparing(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    def then(_: tuple[str, ...]) -> Transition:
        return _to(run, seen, State.VERIFYING, Reason.PREPARED, text=f"all hosts know {plan.target}")

    return _when_applied(plan, run, seen, then) if seen.targets else None


def _verifying(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    if failed := _failed(plan, run, seen):
        return failed
    if run.advance or (seen.targets and _pass(plan, seen)):
        reason = Reason.ADVANCED if run.advance else Reason.GATES_PASSED
        return _shift(plan, run, seen, 1, reason=reason)
    return None


def _shifting(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    if failed := _failed(plan, run, seen):
        return failed
    if not run.applied:
        if run.apply_at and seen.unarmed and run.apply_at - plan.lead * MARGIN * 1e9 <= seen.wall < run.apply_at:
            return _unarmed(run, seen)
        return _when_applied(plan, run, seen, lambda without: _has_it(run, seen, without))
    if not run.advance and not (seen.elapsed >= plan.steps[run.step - 1].hold and _pass(plan, seen)):
        return None
    reason = Reason.ADVANCED if run.advance else Reason.HOLD_OVER
    if run.step < len(plan.steps):
        return _shift(plan, run, seen, run.step + 1, reason=reason)
    if plan.on_open is OnOpen.KEEP or not left(plan, run):
        return _finish(plan, run, seen, reason)
    if plan.on_open is OnOpen.CUT:
        return _close(plan, run, seen, reason)
    text = f"for connections to {', '.join(left(plan, run))}, at most {plan.drain_timeout:g} s"
    return _to(run, seen, State.DRAINING, reason, text=text)


def _draining(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    if failed := _failed(plan, run, seen):
        return failed
    if run.closing:
        return _when_applied(plan, run, seen, lambda without: _finish(plan, run, seen, Reason.DRAINED, without=without))
    if not run.advance and seen.open != 0 and seen.elapsed < plan.drain_timeout:
        return None
    return _close(plan, run, seen, Reason.ADVANCED if run.advance else Reason.DRAINED)


def _confirming(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    if failed := _failed(plan, run, seen):
        return failed
    if not run.armed:
        # The time begins before the key is put, so it is never shorter than promised.
        return Transition(_next(run, seen, armed=True), Reason.ARMED, key=Key.PUT)
    if not seen.confirm:
        text = f"nobody confirmed it within {plan.confirm_within:g} s"
        return back(plan, run, seen, Reason.NOT_CONFIRMED, text=text, key=Key.EXPIRED)
    if not run.applied:  # weights were restored meanwhile
        return _when_applied(plan, run, seen, lambda without: _has_it(run, seen, without))
    return None


_STATES: Mapping[State, Callable[[Plan, Run, Seen], Transition | None]] = {
    State.PENDING: _pending,
    State.PREPARING: _preparing,
    State.VERIFYING: _verifying,
    State.SHIFTING: _shifting,
    State.DRAINING: _draining,
    State.CONFIRMING: _confirming,
}


def _shift(plan: Plan, run: Run, seen: Seen, number: int, *, reason: Reason) -> Transition:
    """Begin a step."""
    weights = plan.steps[number - 1].weights
    apply_at = seen.wall + int(plan.lead * 1e9) if plan.lead else 0
    shares = _shares(seen, weights, apply_at=apply_at)
    moved = replace(_moved(run, seen, State.SHIFTING), step=number, apply_at=apply_at)
    return Transition(moved, reason, f"step {number}: {shown(weights)}", shares)


def _has_it(run: Run, seen: Seen, without: tuple[str, ...]) -> Transition:
    """All hosts have what is written."""
    text = f"step {run.step} is on all hosts" + (" but those that are lost" if without else "")
    return Transition(_next(run, seen, applied=True, without=without), Reason.APPLIED, text)


def _unarmed(run: Run, seen: Seen) -> Transition:
    """Not everybody holds the step: nobody is to wait for the instant."""
    text = f"step {run.step} is applied at once: {', '.join(seen.unarmed)} would not be in time"
    shares = {name: replace(now, apply_at=0) for name, now in seen.shares.items()}
    return Transition(_next(run, seen, apply_at=0), Reason.NOT_ARMED, text, shares)


def _close(plan: Plan, run: Run, seen: Seen, reason: Reason) -> Transition:
    """Cut what is still open to the colors that were left."""
    gone = left(plan, run)
    shares = _shares(seen, plan.steps[-1].weights, closed=gone)
    text = f"connections that are open to {', '.join(gone)} are cut"
    return Transition(replace(_moved(run, seen, State.DRAINING), closing=True), reason, text, shares)


def _finish(plan: Plan, run: Run, seen: Seen, reason: Reason, *, without: tuple[str, ...] | None = None) -> Transition:
    """The last step is done."""
    found = replace(run, applied=True, without=run.without if without is None else without)
    if plan.confirm_within:
        text = f"to be confirmed within {plan.confirm_within:g} s, else it rolls back"
        return _to(found, seen, State.CONFIRMING, reason, text=text)
    return succeeded(plan, found, Reason.DONE, spent=seen.total)


def succeeded(plan: Plan, run: Run, reason: Reason, *, spent: float) -> Transition:
    """It is over, and stays."""
    over = replace(_end(run, State.SUCCEEDED), spent=spent, settled=run.applied and not run.without)
    return Transition(over, reason, f"the weights are {shown(plan.steps[-1].weights)}")


# ---- waiting


def _when_applied(plan: Plan, run: Run, seen: Seen, then: Callable[[tuple[str, ...]], Transition]) -> Transition | None:
    """`then` when all hosts have what is written, given those that it goes on without; or back, or wait."""
    applied = seen.applied
    if applied is None:
        return None
    if applied.lost and plan.on_lost is OnLost.ROLLBACK:
        text = f"lost, and most likely forwarding by the old weights: {', '.join(sorted(applied.lost.values()))}"
        return back(plan, run, seen, Reason.HOST_LOST, text=text)
    timeout = plan.step_timeout + (plan.lead if run.apply_at else 0)
    if applied.behind and plan.on_behind is OnBehind.ROLLBACK and seen.elapsed >= timeout:
        text = f"behind after {timeout:g} s: {', '.join(sorted(applied.behind.values()))}"
        return back(plan, run, seen, Reason.HOST_BEHIND, text=text)
    if applied.behind or applied.silent or (applied.lost and plan.on_lost is not OnLost.PROCEED):
        return None
    return then(tuple(sorted(applied.lost)))


def _failed(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    """Back, because of what is wrong with the target."""
    for judgement in seen.gates:
        if judgement.verdict is Verdict.FAIL:
            text = f"{judgement.gate}: {judgement.text}"
            return back(plan, run, seen, Reason.GATE_FAILED, text=text)
    if not seen.targets and run.state in MOVED:
        return back(plan, run, seen, Reason.TARGET_GONE, text=f"a network has no port in {plan.target} any more")
    return None


def _pass(plan: Plan, seen: Seen) -> bool:
    return [judgement.verdict for judgement in seen.gates] == [Verdict.PASS] * len(plan.gates)


def _why(seen: Seen) -> str:
    """What a rollout was waiting for, as the end of a sentence."""
    why = [f"{j.gate}: {j.text}" for j in seen.gates if j.verdict is not Verdict.PASS]
    if seen.applied and seen.applied.names:
        why.append(f"hosts without it: {', '.join(seen.applied.names)}")
    return f" ({'; '.join(why)})" if why else ""


# ---- the way back


def back(plan: Plan, run: Run, seen: Seen, reason: Reason, *, text: str, key: Key = Key.NONE) -> Transition:
    """To the weights from before; before the first step nothing has moved."""
    if not run.step and not _astray(expected(plan, run), seen):
        over = replace(_end(run, State.ROLLED_BACK), spent=seen.total, settled=True)
        return Transition(over, reason, text)
    if run.armed and key is Key.NONE:
        key = Key.DROP
    cut = plan.on_rollback is OnRollback.CUT or (plan.on_rollback is OnRollback.BY_REASON and reason in _CUTTING)
    shares = {}
    for before in run.networks:
        weights = dict(before.shares.weights)
        closed = {*before.shares.closed} - {plan.target} | ({plan.target} if cut else set())
        shares[before.network] = Shares(before.shares.weights, tuple(sorted(closed - weights.keys())))
    return Transition(_moved(run, seen, State.ROLLING_BACK), reason, text, shares, key)


def _rolling_back(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    complete = seen.applied is not None and seen.applied.is_complete
    if not complete and seen.elapsed < plan.step_timeout:
        return None
    over = replace(_end(run, State.ROLLED_BACK), spent=seen.total, settled=complete)
    behind = ", ".join(seen.applied.names) if seen.applied else "it is not known which hosts have them"
    text = "the weights are those from before" + ("" if complete else f"; not yet on all hosts: {behind}")
    return Transition(over, Reason.DONE, text)


def _over(run: Run, seen: Seen) -> Transition | None:
    """A run that ended with hosts behind is settled when none is left."""
    if run.settled or seen.applied is None or not seen.applied.is_complete:
        return None
    return Transition(replace(run, settled=True, without=(), serial=run.serial + 1), Reason.SETTLED, "on all hosts")


# ---- weights


def expected(plan: Plan, run: Run) -> Mapping[str, Weights]:
    """The weights that the run says, by network."""
    if not run.step or run.state in (State.ROLLING_BACK, State.ROLLED_BACK):
        return {before.network: before.shares.weights for before in run.networks}
    return {before.network: plan.steps[run.step - 1].weights for before in run.networks}


def _restored(plan: Plan, run: Run, seen: Seen) -> Transition | None:
    """Somebody has gone past the API and moved traffic: a run never ends with other weights than it says."""
    wanted = expected(plan, run)
    astray = _astray(wanted, seen)
    if not astray:
        return None
    shares = {name: replace(_weighted(seen.shares[name], wanted[name]), apply_at=0) for name in astray}
    text = f"weights written by somebody else are replaced: {', '.join(astray)}"
    return Transition(_next(run, seen, applied=False, apply_at=0), Reason.RESTORED, text, shares)


def _astray(wanted: Mapping[str, Weights], seen: Seen) -> list[str]:
    return sorted(name for name, now in seen.shares.items() if now.weights != wanted.get(name, now.weights))


def left(plan: Plan, run: Run) -> tuple[str, ...]:
    """The colors that had weight before and have none in the end."""
    kept = dict(plan.steps[-1].weights)
    return tuple(sorted({c for before in run.networks for c, _ in before.shares.weights} - kept.keys()))


def _shares(seen: Seen, weights: Weights, *, closed: Iterable[str] = (), apply_at: int = 0) -> dict[str, Shares]:
    return {
        name: _weighted(replace(now, closed=tuple(sorted({*now.closed, *closed})), apply_at=apply_at), weights)
        for name, now in seen.shares.items()
    }


def _weighted(now: Shares, weights: Weights) -> Shares:
    """Other weights; a color that has weight is not closed."""
    return replace(now, weights=weights, closed=tuple(c for c in now.closed if c not in dict(weights)))


def shown(weights: Weights) -> str:
    """For people: blue 90, green 10."""
    return ", ".join(f"{color} {weight}" for color, weight in weights)


# ---- runs


def _to(run: Run, seen: Seen, state: State, reason: Reason, *, text: str) -> Transition:
    """Another state in which nothing new is written for hosts."""
    return Transition(replace(_moved(run, seen, state), applied=run.applied), reason, text)


def _moved(run: Run, seen: Seen, state: State) -> Run:
    """In another state or step, with everything that belongs to the old one forgotten."""
    return replace(
        run, state=state, applied=False, advance=False, paused=None, armed=False, closing=False, apply_at=0,
        serial=run.serial + 1, spent=seen.total,
    )  # fmt: skip


def _next(run: Run, seen: Seen, **changes: object) -> Run:
    """The same state, further."""
    return replace(run, serial=run.serial + 1, spent=seen.total, **changes)  # type: ignore[arg-type]


def _end(run: Run, state: State) -> Run:
    return replace(
        run, state=state, advance=False, paused=None, armed=False, closing=False, apply_at=0, serial=run.serial + 1
    )
