"""A rollout as rows: the plan, which never changes, and the run, which each transition rewrites. Times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from controller.rows import OnOpen

Weights = tuple[tuple[str, int], ...]
"""By color's name, sorted; each above 0."""


class State(Enum):
    """Where a rollout is; the names are the API's."""

    PENDING = "PENDING"
    PREPARING = "PREPARING"
    VERIFYING = "VERIFYING"
    SHIFTING = "SHIFTING"
    DRAINING = "DRAINING"
    CONFIRMING = "CONFIRMING"
    SUCCEEDED = "SUCCEEDED"
    PAUSED = "PAUSED"
    ROLLING_BACK = "ROLLING_BACK"
    ROLLED_BACK = "ROLLED_BACK"


OVER = frozenset({State.SUCCEEDED, State.ROLLED_BACK})
MOVED = frozenset({State.SHIFTING, State.DRAINING, State.CONFIRMING})
"""Traffic has moved, and may go back."""


class OnBehind(Enum):
    """A host in session that has not applied a step in time."""

    WAIT = "WAIT"
    ROLLBACK = "ROLLBACK"


class OnLost(Enum):
    """A host that is LOST, and most likely forwards still."""

    WAIT = "WAIT"
    ROLLBACK = "ROLLBACK"
    PROCEED = "PROCEED"


class OnRollback(Enum):
    """Connections open to the target on the way back."""

    BY_REASON = "BY_REASON"
    KEEP = "KEEP"
    CUT = "CUT"


class ProbeKind(Enum):
    """What a probe asks."""

    ICMP = "ICMP"
    TCP = "TCP"
    HTTP = "HTTP"


class Span(NamedTuple):
    """HTTP statuses that are fine, both included."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Every port of the target is ACTIVE."""


@dataclass(frozen=True, slots=True)
class Probe:
    """Ports of the target answer, asked from inside it. `network` "": of all networks; `ports`: a label selector."""

    kind: ProbeKind
    port: int
    path: str
    host: str
    status: Span
    interval: float
    timeout: float
    failures: int
    network: str
    ports: str


@dataclass(frozen=True, slots=True)
class FailedConnections:
    """At most this share (0…1) of new connections to the target fails, of at least so many."""

    share: float
    samples: int


@dataclass(frozen=True, slots=True)
class External:
    """GET of an URL by the controller."""

    url: str
    status: Span
    interval: float
    timeout: float
    failures: int


Gate = Endpoints | Probe | FailedConnections | External


class Step(NamedTuple):
    """One move."""

    weights: Weights
    hold: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, with all defaults filled in."""

    networks: tuple[str, ...]  # resource names
    target: str
    origin: str
    steps: tuple[Step, ...]
    gates: tuple[Gate, ...]
    confirm_within: float  # 0: no confirmation
    deadline: float
    step_timeout: float
    pause_timeout: float  # 0: never
    on_behind: OnBehind
    on_lost: OnLost
    on_rollback: OnRollback
    on_open: OnOpen
    drain_timeout: float
    lead: float  # of apply_at; 0: at once
    max_offset: float


@dataclass(frozen=True, slots=True)
class Shares:
    """What a rollout writes of a split. `apply_at`: Unix time in ns, 0 = at once."""

    weights: Weights
    closed: tuple[str, ...]  # sorted; none of them has weight
    apply_at: int = 0


@dataclass(frozen=True, slots=True)
class Before:
    """One of the networks, and its split as it was when the rollout was created."""

    network: str
    uid: str
    shares: Shares
    segments: tuple[tuple[str, str], ...]  # color → uid of its segment, which the rollout refers to


@dataclass(frozen=True, slots=True)
class Run:
    """How far it is; see RolloutRun of the store's messages."""

    state: State
    step: int = 0  # from 1
    applied: bool = False
    serial: int = 0
    spent: float = 0.0
    advance: bool = False
    paused: State | None = None
    armed: bool = False
    closing: bool = False
    apply_at: int = 0
    without: tuple[str, ...] = ()  # host uids
    settled: bool = False
    reason: str = ""
    text: str = ""
    networks: tuple[Before, ...] = ()

    @property
    def is_over(self) -> bool:
        """The weights in the store are final."""
        return self.state in OVER

    @property
    def is_done(self) -> bool:
        """Nothing is left to do or to watch."""
        return self.is_over and self.settled


class Claims(Enum):
    """What a rollout keeps for itself."""

    ALL = "all"
    """Its networks: nobody else moves them; and its colors."""
    COLORS = "colors"
    """A host may still send to any of them."""
    NONE = "none"


def claims(run: Run) -> Claims:
    """What a run has to keep."""
    if not run.is_over:
        return Claims.ALL
    return Claims.NONE if run.settled else Claims.COLORS


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """The spec of a rollout's intent."""

    tenant: str
    plan: Plan
    run: Run
