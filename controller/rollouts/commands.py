"""What users ask of a rollout, as transitions: by the same rules as the machine's own. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import Enum

from controller.rollouts.machine import back, expected, succeeded
from controller.rollouts.plan import Plan, Run, Shares, State
from controller.rollouts.transition import Key, Reason, Seen, Transition

_PAUSABLE = (State.PENDING, State.PREPARING, State.VERIFYING, State.SHIFTING, State.DRAINING)
_WAITING = (State.VERIFYING, State.SHIFTING, State.DRAINING)


class Command(Enum):
    """The API's methods."""

    PAUSE = "pause"
    RESUME = "resume"
    ADVANCE = "advance"
    CONFIRM = "confirm"
    ROLLBACK = "rollback"


class Refused(Exception):
    """It can't be done now: a stable word, why, and what to do instead."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason, self.text = reason, text


def asked(command: Command, plan: Plan, run: Run, shares: Mapping[str, Shares], *, text: str = "") -> Transition | None:
    """The transition that a user asks for; None: it is so already. Raises Refused."""
    seen = Seen(shares=shares, total=run.spent)  # the leader keeps time, not the API
    match command:
        case Command.PAUSE:
            return _pause(run)
        case Command.RESUME:
            return _resume(run)
        case Command.ADVANCE:
            return _advance(run)
        case Command.CONFIRM:
            return _confirm(plan, run, shares)
        case Command.ROLLBACK:
            if run.state in (State.ROLLING_BACK, State.ROLLED_BACK):
                return None
            if run.is_over:
                raise Refused("ROLLOUT_OVER", f"it has succeeded; start another one to {plan.origin} to go back")
            return back(plan, run, seen, Reason.ROLLBACK_ASKED, text=text)


def _pause(run: Run) -> Transition | None:
    if run.state is State.PAUSED:
        return None
    _living(run)
    if run.state not in _PAUSABLE:
        instead = "confirm it or roll it back" if run.state is State.CONFIRMING else "it can't be stopped"
        raise Refused("NOT_PAUSABLE", f"it is {run.state.value}: {instead}")
    paused = replace(run, state=State.PAUSED, paused=run.state, advance=False, serial=run.serial + 1)
    return Transition(paused, Reason.PAUSED, f"was {run.state.value}")


def _resume(run: Run) -> Transition | None:
    _living(run)
    if run.state is not State.PAUSED:
        return None
    to = run.paused or State.PENDING
    return Transition(replace(run, state=to, paused=None, serial=run.serial + 1), Reason.RESUMED)


def _advance(run: Run) -> Transition | None:
    _living(run)
    if run.state is State.PAUSED:
        raise Refused("PAUSED", "it is paused: resume it first")
    if run.state is State.CONFIRMING:
        raise Refused("NOT_WAITING", "it waits to be confirmed: confirm it or roll it back")
    if run.state not in _WAITING or run.closing:
        raise Refused("NOT_WAITING", f"it is {run.state.value} and waits for hosts, which cannot be skipped")
    if run.advance:
        return None
    return Transition(replace(run, advance=True, serial=run.serial + 1), Reason.ADVANCED)


def _confirm(plan: Plan, run: Run, shares: Mapping[str, Shares]) -> Transition | None:
    if run.state is State.SUCCEEDED:
        return None
    _living(run)
    if run.state is not State.CONFIRMING:
        text = "nothing is to be confirmed" if not plan.confirm_within else "it is not yet to be confirmed"
        raise Refused("NOT_CONFIRMING", f"it is {run.state.value}: {text}")
    wanted = expected(plan, run)
    if any(now.weights != wanted.get(name, now.weights) for name, now in shares.items()):
        raise Refused("WEIGHTS_CHANGED", "somebody has changed the weights; they are being restored, try again")
    done = succeeded(plan, run, Reason.CONFIRMED, spent=run.spent)
    return replace(done, key=Key.TAKE if run.armed else Key.NONE)


def _living(run: Run) -> None:
    if run.is_over or run.state is State.ROLLING_BACK:
        raise Refused("ROLLOUT_OVER", f"it is {run.state.value}; nothing can be asked of it any more")
