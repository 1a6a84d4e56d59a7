"""The words of a rollout's machine: what is seen of a rollout, and what a transition is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from controller.rollouts.plan import Run, Shares


class Reason(Enum):
    """Why a rollout is in its state: stable words of the API."""

    STARTED = "Started"
    PREPARED = "Prepared"
    GATES_PASSED = "GatesPassed"
    APPLIED = "Applied"
    HOLD_OVER = "HoldOver"
    DRAINED = "Drained"
    DONE = "Done"
    CONFIRMED = "Confirmed"
    PAUSED = "Paused"
    RESUMED = "Resumed"
    ADVANCED = "Advanced"
    ROLLBACK_ASKED = "RollbackAsked"
    GATE_FAILED = "GateFailed"
    TARGET_GONE = "TargetGone"
    HOST_BEHIND = "HostBehind"
    HOST_LOST = "HostLost"
    DEADLINE_PASSED = "DeadlinePassed"
    PAUSE_TIMED_OUT = "PauseTimedOut"
    NOT_CONFIRMED = "NotConfirmed"
    NOT_ARMED = "NotArmed"
    RESTORED = "Restored"
    SETTLED = "Settled"
    ARMED = "Armed"


QUIET = frozenset({Reason.ARMED})
"""Of no interest to people: no history, no event."""


class Verdict(Enum):
    """What a gate says."""

    PASS = "PASS"
    FAIL = "FAIL"
    INCONCLUSIVE = "INCONCLUSIVE"


@dataclass(frozen=True, slots=True)
class Judgement:
    """A gate's verdict; `gate` and `text` are for people."""

    gate: str
    verdict: Verdict
    text: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """Who does not have what is written: host uid → name. `behind`: in session; `silent`: without one, not yet LOST."""

    behind: Mapping[str, str] = field(default_factory=dict)
    silent: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Everybody has it."""
        return not (self.behind or self.silent or self.lost)

    @property
    def names(self) -> list[str]:
        """All that do not."""
        return sorted({*self.behind.values(), *self.silent.values(), *self.lost.values()})


@dataclass(frozen=True, slots=True)
class Seen:
    """What the leader knows, of this very run (`serial`)."""

    elapsed: float = 0.0  # since this leader first saw the run as it is
    total: float = 0.0  # of the rollout, without pauses: never more than has passed
    wall: int = 0  # Unix time in ns
    shares: Mapping[str, Shares] = field(default_factory=dict)  # splits as they are, by network
    applied: Applied | None = None  # None: not known yet
    gates: tuple[Judgement, ...] = ()  # in the plan's order
    targets: bool = True  # every network has a port of the target that is bound to a host
    confirm: bool = False  # the key of the confirmation is there
    open: int | None = None  # connections to the colors that were left; None: not known
    unarmed: tuple[str, ...] = ()  # names of hosts that do not hold the step, or whose clock is off


class Key(Enum):
    """What a transition does to the key of the confirmation."""

    NONE = "none"
    PUT = "put"
    TAKE = "take"
    """It must be there, and goes."""
    EXPIRED = "expired"
    """It must not be there."""
    DROP = "drop"
    """It goes, if it is there."""


@dataclass(frozen=True, slots=True)
class Transition:
    """One transaction: the run as it is to be, and what goes with it. `shares`: by network, None = splits stay."""

    run: Run
    reason: Reason
    text: str = ""
    shares: Mapping[str, Shares] | None = None
    key: Key = Key.NONE
