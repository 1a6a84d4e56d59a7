"""A world for the rollout machine: a store with compares, hosts that lag, leaders that die and rise, and a clock.

Everything that a transition promises is checked when it is committed; whatever is wrong raises AssertionError there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from controller.rollouts.clock import Clock
from controller.rollouts.commands import Command, Refused, asked
from controller.rollouts.machine import decide, expected
from controller.rollouts.plan import (
    OVER,
    Before,
    Claims,
    Endpoints,
    OnBehind,
    OnLost,
    OnRollback,
    Plan,
    Run,
    Shares,
    State,
    Step,
    claims,
)
from controller.rollouts.transition import Applied, Judgement, Key, Reason, Seen, Transition, Verdict
from controller.rows import OnOpen

WEB, DB = "tenants/acme/networks/web", "tenants/acme/networks/db"
BLUE = Shares((("blue", 100),), ())
LATE = 0.001  # what floating point may lose

_NEXT = {
    State.PENDING: {State.PREPARING},
    State.PREPARING: {State.VERIFYING},
    State.VERIFYING: {State.SHIFTING},
    State.SHIFTING: {State.SHIFTING, State.DRAINING, State.CONFIRMING, State.SUCCEEDED},
    State.DRAINING: {State.DRAINING, State.CONFIRMING, State.SUCCEEDED},
    State.CONFIRMING: {State.CONFIRMING, State.SUCCEEDED},
    State.ROLLING_BACK: {State.ROLLING_BACK, State.ROLLED_BACK},
    State.SUCCEEDED: {State.SUCCEEDED},
    State.ROLLED_BACK: {State.ROLLED_BACK},
}


def plan(**changes: object) -> Plan:
    """Two steps of a plan with everything bounded."""
    made = Plan(
        networks=(WEB, DB), target="green", origin="blue",
        steps=(Step((("blue", 90), ("green", 10)), 2.0), Step((("green", 100),), 1.0)),
        gates=(Endpoints(),), confirm_within=0.0, deadline=60.0, step_timeout=5.0, pause_timeout=0.0,
        on_behind=OnBehind.ROLLBACK, on_lost=OnLost.WAIT, on_rollback=OnRollback.BY_REASON,
        on_open=OnOpen.KEEP, drain_timeout=0.0, lead=0.0, max_offset=0.01,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@dataclass
class Host:
    """What is on its devices, by network."""

    name: str
    has: dict[str, Shares] = field(default_factory=dict)
    is_here: bool = True  # in session
    is_lost: bool = False
    works: bool = True  # it takes what it is sent
    fails: bool = False  # … but can't apply weights
    counts: bool = True  # not fenced


@dataclass
class View:
    """The tables of one replica at some moment."""

    run: Run
    revision: int  # of the rollout's row
    splits: dict[str, tuple[Shares, int]]
    key: bool  # of the confirmation


@dataclass
class Proposal:
    """What a leader or a handler wants to commit: its term (0: a handler needs none), what it saw, what it wants."""

    term: int
    view: View
    transition: Transition
    seen: Seen


class World:
    """The store and all that is observed of it."""

    def __init__(self, made: Plan, *, before: Shares = BLUE) -> None:
        self.plan, self.before = made, before
        self.now = 0.0
        self.revision, self.term = 10, 1
        self.splits = {name: (before, 5) for name in made.networks}
        networks = tuple(Before(name, name, before, ()) for name in made.networks)
        self.run, self.row_revision = Run(State.PENDING, networks=networks), 10
        self.key_until: float | None = None
        self.claims = {name for name in made.networks}
        self.colors = {"blue", "green"}
        self.hosts = [Host(f"h{n}", dict.fromkeys(made.networks, before)) for n in range(3)]
        self.verdict = Verdict.PASS
        self.has_targets = True
        self.open = 5
        self.history: list[Transition] = []
        # For the checks.
        self.entered = 0.0  # when the present serial came to be
        self.confirming_since = 0.0
        self.unpaused = 0.0
        self.confirmed = False

    # ---- time

    def tick(self, seconds: float) -> None:
        self.now += seconds
        if self.run.state not in OVER and self.run.state is not State.PAUSED:
            self.unpaused += seconds
        if self.key_until is not None and self.now >= self.key_until:
            self.key_until = None

    # ---- hosts

    def deliver(self, host: Host) -> None:
        """A host catches up with everything at once, as a unit does."""
        if host.is_here and host.works and not host.fails:
            host.has = {name: shares for name, (shares, _) in self.splits.items()}

    def lacks(self, host: Host) -> bool:
        return host.fails or any(host.has[name] != shares for name, (shares, _) in self.splits.items())

    def applied(self) -> Applied:
        """As Sync tells it."""
        owing = [host for host in self.hosts if host.counts and self.lacks(host)]
        return Applied(
            behind={h.name: h.name for h in owing if h.is_here},
            silent={h.name: h.name for h in owing if not h.is_here and not h.is_lost},
            lost={h.name: h.name for h in owing if not h.is_here and h.is_lost},
        )

    # ---- reading and writing

    def view(self) -> View:
        return View(self.run, self.row_revision, dict(self.splits), self.key_until is not None)

    def commit(self, proposal: Proposal) -> bool:
        """Etcd: everything that was read is compared."""
        view, transition = proposal.view, proposal.transition
        holds = proposal.term in (0, self.term) and view.revision == self.row_revision
        holds &= all(self.splits[name][1] == revision for name, (_, revision) in view.splits.items())
        if transition.key is Key.TAKE:
            holds &= self.key_until is not None
        if transition.key is Key.EXPIRED:
            holds &= self.key_until is None
        if not holds:
            return False
        self._check(transition, proposal.seen)
        self.revision += 1
        if transition.key is Key.PUT:
            self.key_until = self.now + self.plan.confirm_within
        elif transition.key is not Key.NONE:
            self.key_until = None
        for name, shares in (transition.shares or {}).items():
            self.splits[name] = (shares, self.revision)
        if transition.run.state is State.CONFIRMING and self.run.state is not State.CONFIRMING:
            self.confirming_since = self.now
        self.run, self.row_revision, self.entered = transition.run, self.revision, self.now
        kept = claims(self.run)
        self.claims = set(self.plan.networks) if kept is Claims.ALL else set()
        self.colors = {"blue", "green"} if kept is not Claims.NONE else set()
        self.history.append(transition)
        self._check_weights()
        return True

    def edit(self, shares: Shares) -> None:
        """Somebody goes past the API."""
        self.revision += 1
        self.splits[WEB] = (shares, self.revision)

    # ---- what is promised

    def _check(self, new: Transition, seen: Seen) -> None:
        """What was observed is what was so when it was thought of: only what is in the store is compared."""
        passes = all(judgement.verdict is Verdict.PASS for judgement in seen.gates)
        old, run = self.run, new.run
        assert run.serial == old.serial + 1
        self._check_edge(old, run, new.reason)
        since = self.now - self.entered + LATE
        if old.state is State.SHIFTING and new.reason is Reason.HOLD_OVER:
            assert old.applied, "a hold begins when all hosts have the step"
            assert since >= self.plan.steps[old.step - 1].hold, "a hold is never shorter"
            assert passes
        if new.reason in (Reason.GATES_PASSED, Reason.PREPARED):
            assert seen.targets and (new.reason is Reason.PREPARED or passes)
        if (run.applied and not old.applied) or new.reason is Reason.SETTLED:
            self._check_applied(run, seen)
        if new.reason is Reason.HOST_BEHIND:
            assert since >= self.plan.step_timeout
        if new.reason is Reason.DEADLINE_PASSED:
            assert self.unpaused + LATE >= self.plan.deadline - self.plan.confirm_within, "never early"
        if new.reason is Reason.PAUSE_TIMED_OUT:
            assert since >= self.plan.pause_timeout
        if new.reason is Reason.NOT_CONFIRMED:
            assert not self.confirmed
            assert self.now - self.confirming_since + LATE >= self.plan.confirm_within, "never earlier than promised"
        if new.reason is Reason.CONFIRMED:
            self.confirmed = True

    def _check_edge(self, old: Run, run: Run, reason: Reason) -> None:
        if reason is Reason.PAUSED:
            assert run.state is State.PAUSED and old.state not in {*OVER, State.CONFIRMING, State.ROLLING_BACK}
        elif reason is Reason.RESUMED:
            assert old.state is State.PAUSED and run.state is old.paused
        elif run.state is State.ROLLED_BACK and old.state is not State.ROLLING_BACK and old.state is not run.state:
            assert not old.step, "traffic has moved: it goes back first"
        elif run.state is State.ROLLING_BACK and old.state is not run.state:
            astray = any(shares.weights != self.before.weights for shares, _ in self.splits.values())
            assert (old.step or astray) and old.state not in OVER
        elif run.state is not old.state:
            assert run.state in _NEXT[old.state], f"{old.state} → {run.state}"
        if run.state is State.SHIFTING and old.step != run.step:
            assert run.step == old.step + 1
        assert old.state not in OVER or run.state is old.state, "what is over stays over"

    def _check_applied(self, run: Run, seen: Seen) -> None:
        owing = seen.applied
        assert owing is not None and not owing.behind and not owing.silent
        if owing.lost:
            assert self.plan.on_lost is OnLost.PROCEED and set(run.without) == owing.lost.keys()

    def _check_weights(self) -> None:
        """The row and the splits speak of the same, at every revision."""
        wanted = expected(self.plan, self.run)
        touched = self.history[-1].shares is not None or self.run.is_over
        for name, (shares, _) in self.splits.items():
            assert not set(shares.closed) & dict(shares.weights).keys()
            if touched:
                assert shares.weights == wanted[name], f"{self.run.state}: {shares}"
        assert bool(self.claims) == (self.run.state not in OVER)
        assert bool(self.colors) or self.run.settled


class Leader:
    """One term of one replica; it may go on after its term is over, and then must change nothing."""

    def __init__(self, world: World) -> None:
        world.term += 1
        self.world, self.term = world, world.term
        self.clock = Clock()
        self.view = world.view()

    def look(self) -> None:
        """The watch catches up."""
        self.view = self.world.view()

    def think(self) -> Proposal | None:
        """What it would commit, by its tables and by what it observes now."""
        world, view = self.world, self.view
        elapsed, total = self.clock.read(view.run, world.now)
        current = view.revision == world.row_revision and view.splits == world.splits
        seen = Seen(
            elapsed=elapsed,
            total=total,
            wall=int(world.now * 1e9),
            shares={name: shares for name, (shares, _) in view.splits.items()},
            # A Sync is asked with the revision that the tables have; it says nothing of what came after.
            applied=world.applied() if current else None,
            gates=(Judgement("the gate", world.verdict),),
            targets=world.has_targets,
            confirm=view.key,
            open=world.open,
        )
        found = decide(world.plan, view.run, seen)
        return Proposal(self.term, view, found, seen) if found else None


def ask(world: World, view: View, command: Command) -> bool:
    """A handler on some replica; whether it was done."""
    try:
        found = asked(command, world.plan, view.run, {name: shares for name, (shares, _) in view.splits.items()})
    except Refused:
        return False
    return found is not None and world.commit(Proposal(0, view, found, Seen()))
