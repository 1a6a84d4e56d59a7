"""The rollout machine against random histories: leaders die anywhere, hosts lag and vanish, users ask at any time.

Every history ends SUCCEEDED or ROLLED_BACK with exactly the weights it says, in time, whoever was killed when.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from controller.rollouts.commands import Command
from controller.rollouts.machine import decide
from controller.rollouts.plan import OnBehind, OnLost, OnRollback, Plan, Shares, State, Step
from controller.rollouts.transition import Reason, Seen, Verdict
from controller.rows import OnOpen
from tests.controller.rollouts.simulated import BLUE, WEB, Leader, Proposal, World, ask, plan

TICK = 0.25
GREEN = Shares((("green", 100),), ())


def end(world: World, leader: Leader, *, limit: float = 1000.0, confirms: bool = False) -> None:
    """No more faults: the leader runs until it is over; somebody confirms as soon as that can be."""
    until = world.now + limit
    while not world.run.is_over:
        assert world.now < until, f"{world.run} does not end"
        if confirms:
            ask(world, world.view(), Command.CONFIRM)
        world.tick(TICK)
        for host in world.hosts:
            world.deliver(host)
        turn(world, leader)


def turn(world: World, leader: Leader) -> None:
    leader.look()
    for _ in range(4):
        found = leader.think()
        if found is None or not world.commit(found):
            return
        leader.look()


def through(world: World, leader: Leader, seconds: float) -> None:
    until = world.now + seconds
    while world.now < until:
        world.tick(TICK)
        for host in world.hosts:
            world.deliver(host)
        turn(world, leader)


def at(world: World) -> State:
    return world.run.state


def reasons(world: World) -> list[Reason]:
    return [transition.reason for transition in world.history]


# ---- what happens, by example


def test_a_plan_is_carried_out() -> None:
    world = World(plan(confirm_within=3.0, on_open=OnOpen.DRAIN, drain_timeout=2.0))
    leader = Leader(world)
    through(world, leader, 20)
    assert reasons(world) == [
        Reason.STARTED, Reason.PREPARED, Reason.GATES_PASSED, Reason.APPLIED, Reason.HOLD_OVER, Reason.APPLIED,
        Reason.HOLD_OVER, Reason.DRAINED, Reason.DRAINED, Reason.ARMED, Reason.NOT_CONFIRMED, Reason.DONE,
    ]  # fmt: skip
    assert at(world) is State.ROLLED_BACK and world.run.is_done
    assert world.splits[WEB][0] == Shares((("blue", 100),), ("green",)), "nobody confirmed: green is cut"


def test_confirmation_makes_it_stay() -> None:
    world = World(plan(confirm_within=30.0))
    leader = Leader(world)
    through(world, leader, 10)
    assert at(world) is State.CONFIRMING
    assert ask(world, world.view(), Command.CONFIRM)
    through(world, leader, 60)
    assert at(world) is State.SUCCEEDED and world.splits[WEB][0] == GREEN
    assert not ask(world, world.view(), Command.ROLLBACK)


def test_confirm_and_revert_never_both_win() -> None:
    world = World(plan(confirm_within=2.0))
    leader = Leader(world)
    while not world.run.armed:
        through(world, leader, TICK)
    while world.key_until is not None:
        stale = world.view()
        world.tick(TICK)
    leader.look()
    revert = leader.think()
    assert revert and revert.transition.reason is Reason.NOT_CONFIRMED
    assert not ask(world, stale, Command.CONFIRM), "the key is gone"
    assert world.commit(revert)
    assert at(world) is State.ROLLING_BACK


def test_a_failing_gate_rolls_back_and_cuts() -> None:
    world = World(plan())
    leader = Leader(world)
    through(world, leader, 1.5)
    assert at(world) is State.SHIFTING and world.run.applied
    world.verdict = Verdict.FAIL
    end(world, leader)
    assert at(world) is State.ROLLED_BACK and Reason.GATE_FAILED in reasons(world)
    assert world.splits[WEB][0] == Shares((("blue", 100),), ("green",))


@pytest.mark.parametrize(("on_rollback", "closed"), [(OnRollback.BY_REASON, ()), (OnRollback.CUT, ("green",))])
def test_a_user_rolls_back(on_rollback: OnRollback, closed: tuple[str, ...]) -> None:
    world = World(plan(on_rollback=on_rollback))
    leader = Leader(world)
    through(world, leader, 1.5)
    assert ask(world, world.view(), Command.ROLLBACK)
    end(world, leader)
    assert at(world) is State.ROLLED_BACK and world.splits[WEB][0] == replace(BLUE, closed=closed)


def test_a_target_that_had_weight_is_not_cut() -> None:
    canary = Shares((("blue", 95), ("green", 5)), ())
    world = World(plan(), before=canary)
    leader = Leader(world)
    through(world, leader, 1.5)
    world.verdict = Verdict.FAIL
    end(world, leader)
    assert world.splits[WEB][0] == canary


def test_a_gate_that_cannot_tell_waits_for_the_deadline() -> None:
    world = World(plan())
    world.verdict = Verdict.INCONCLUSIVE
    leader = Leader(world)
    through(world, leader, 59)
    assert at(world) is State.VERIFYING
    end(world, leader)
    assert reasons(world)[-1] is Reason.DEADLINE_PASSED and world.splits[WEB][0] == BLUE
    assert "the gate" in world.history[-1].text


def test_advance_goes_on_without_the_hold_but_not_without_hosts() -> None:
    world = World(
        plan(steps=(Step((("blue", 90), ("green", 10)), 1000.0), Step((("green", 100),), 0.0)), deadline=2000.0)
    )
    leader = Leader(world)
    through(world, leader, 1)
    world.hosts[0].works = False
    assert world.run.step == 1 and world.run.applied
    assert ask(world, world.view(), Command.ADVANCE)
    through(world, leader, 1)
    assert world.run.step == 2 and not world.run.applied
    assert ask(world, world.view(), Command.ADVANCE)
    through(world, leader, 1)
    assert world.run.step == 2 and not world.run.applied
    world.hosts[0].works = True
    end(world, leader)
    assert at(world) is State.SUCCEEDED


def test_a_pause_lasts_and_the_hold_begins_anew() -> None:
    world = World(plan(deadline=20.0))
    leader = Leader(world)
    through(world, leader, 2)
    assert ask(world, world.view(), Command.PAUSE)
    through(world, leader, 500)
    assert at(world) is State.PAUSED and world.run.step == 1
    assert not ask(world, world.view(), Command.ADVANCE)
    resumed = world.now
    assert ask(world, world.view(), Command.RESUME)
    end(world, leader)
    assert at(world) is State.SUCCEEDED and world.now - resumed >= 3.0


def test_a_pause_can_time_out() -> None:
    world = World(plan(pause_timeout=10.0))
    leader = Leader(world)
    through(world, leader, 2)
    assert ask(world, world.view(), Command.PAUSE)
    end(world, leader, limit=20)
    assert Reason.PAUSE_TIMED_OUT in reasons(world) and at(world) is State.ROLLED_BACK


def test_a_host_that_is_behind() -> None:
    for policy, state in ((OnBehind.ROLLBACK, State.ROLLED_BACK), (OnBehind.WAIT, State.SHIFTING)):
        world = World(plan(on_behind=policy))
        leader = Leader(world)
        through(world, leader, 1.5)
        world.hosts[0].works = False
        through(world, leader, 20)
        assert at(world) is state and not world.run.settled
        world.hosts[0].works = True
        through(world, leader, 10)
        assert world.run.is_done


def test_a_host_that_fails_the_step_is_behind() -> None:
    world = World(plan())
    leader = Leader(world)
    world.hosts[1].fails = True
    through(world, leader, 6)
    assert reasons(world)[-1] is Reason.HOST_BEHIND and at(world) is State.ROLLED_BACK
    assert "h1" in world.history[-1].text


def test_a_lost_host() -> None:
    ends = {OnLost.WAIT: Reason.DEADLINE_PASSED, OnLost.ROLLBACK: Reason.HOST_LOST, OnLost.PROCEED: Reason.DONE}
    for policy, reason in ends.items():
        world = World(plan(on_lost=policy))
        leader = Leader(world)
        through(world, leader, 1.5)
        world.hosts[0].is_here = False
        through(world, leader, 20)
        assert not world.run.is_over, "silent, and nobody knows for how long"
        world.hosts[0].is_lost = True
        through(world, leader, 60)
        assert reason in reasons(world)
        succeeded = policy is OnLost.PROCEED
        assert at(world) is (State.SUCCEEDED if succeeded else State.ROLLED_BACK)
        assert not world.run.settled and world.colors, "it may still send to the old color"
        if succeeded:
            assert world.run.without == ("h0",)
        world.hosts[0].is_here, world.hosts[0].is_lost = True, False
        through(world, leader, 1)
        assert world.run.is_done and not world.colors


def test_a_fenced_host_blocks_nothing() -> None:
    world = World(plan())
    leader = Leader(world)
    world.hosts[0].is_here, world.hosts[0].is_lost = False, True
    through(world, leader, 1.5)
    through(world, leader, 5)
    assert at(world) is State.SHIFTING and not world.run.applied
    world.hosts[0].counts = False
    end(world, leader)
    assert at(world) is State.SUCCEEDED


def test_ports_of_the_target_vanish() -> None:
    world = World(plan())
    leader = Leader(world)
    through(world, leader, 1.5)
    world.has_targets = False
    end(world, leader)
    assert Reason.TARGET_GONE in reasons(world)
    assert world.splits[WEB][0].closed == ("green",)


def test_who_goes_past_the_api_is_put_right() -> None:
    world = World(plan(confirm_within=100.0, deadline=300.0))
    leader = Leader(world)
    through(world, leader, 10)
    assert at(world) is State.CONFIRMING
    world.edit(BLUE)
    assert not ask(world, world.view(), Command.CONFIRM)
    through(world, leader, 1)
    assert world.splits[WEB][0] == GREEN and world.run.applied
    assert ask(world, world.view(), Command.CONFIRM)
    end(world, leader)
    assert at(world) is State.SUCCEEDED


def test_an_instant_counts_only_if_all_hold_it() -> None:
    made = plan(lead=2.0)
    world = World(made)
    leader = Leader(world)
    through(world, leader, 0.5)
    assert world.run.apply_at == world.splits[WEB][0].apply_at > world.now * 1e9
    through(world, leader, 2)
    assert world.run.apply_at, "all hold it: it stays"


def test_an_instant_that_not_all_hold_is_not_waited_for() -> None:
    world = World(plan(lead=4.0))
    run = replace(world.run, state=State.SHIFTING, step=1, apply_at=10**12)
    shares = dict.fromkeys(world.splits, Shares((("blue", 90), ("green", 10)), (), 10**12))
    for before, unarmed, expected in ((3.0, ("h1",), None), (1.5, (), None), (1.5, ("h1",), 0), (-1.0, ("h1",), None)):
        seen = Seen(wall=run.apply_at - int(before * 1e9), shares=shares, unarmed=unarmed)
        found = decide(world.plan, run, seen)
        if expected is None:
            assert found is None, before
        else:
            assert found and found.reason is Reason.NOT_ARMED and found.shares
            assert [one.apply_at for one in found.shares.values()] == [0, 0] and not found.run.applied


def test_a_leader_of_old_changes_nothing() -> None:
    world = World(plan())
    old = Leader(world)
    through(world, old, 1.5)
    world.tick(2)
    old.look()
    late = old.think()
    assert late is not None
    new = Leader(world)
    assert not world.commit(late)
    end(world, new)
    assert at(world) is State.SUCCEEDED


# ---- random histories


plans = st.builds(
    plan,
    steps=st.lists(
        st.builds(
            Step,
            st.sampled_from([(("blue", 90), ("green", 10)), (("blue", 50), ("green", 50)), (("green", 100),)]),
            st.sampled_from([0.0, 1.0, 4.0]),
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    confirm_within=st.sampled_from([0.0, 3.0, 8.0]),
    deadline=st.sampled_from([20.0, 60.0]),
    pause_timeout=st.sampled_from([0.0, 6.0]),
    on_behind=st.sampled_from(OnBehind),
    on_lost=st.sampled_from(OnLost),
    on_rollback=st.sampled_from(OnRollback),
    on_open=st.sampled_from(OnOpen),
    drain_timeout=st.sampled_from([0.0, 3.0]),
)

befores = st.sampled_from(
    [
        BLUE,
        Shares((("blue", 100),), ("green",)),  # cut by an earlier rollback
        Shares((("blue", 9), ("green", 1)), ("red",)),
        Shares((("blue", 50), ("red", 50)), ()),
    ]
)

ACTIONS = (
    ["look", "think", "commit", "commit and die", "die", "zombie"] * 3
    + ["run"] * 6
    + ["tick", "deliver", "deliver", "host goes", "host is lost", "host returns", "host hangs", "host works"]
    + ["host fails", "host heals", "host fenced"]
    + ["gate passes", "gate passes", "gate fails", "gate can't tell", "targets go", "targets come", "drained", "edit"]
    + ["remember", "stale command"]
    + [command.value for command in Command]
)


class Chaos:
    """Takes actions one after the other."""

    def __init__(self, made: Plan, before: Shares) -> None:
        self.world = World(made, before=before)
        self.leader = Leader(self.world)
        self.old: list[Leader] = []
        self.proposed: list[Proposal] = []
        self.remembered = self.world.view()

    def act(self, action: str, number: int) -> None:
        world, host = self.world, self.world.hosts[number % len(self.world.hosts)]
        match action:
            case "tick":
                world.tick(0.1 + number % 8)
            case "run":
                through(world, self.leader, 0.5 + number % 4)
            case "look":
                self.leader.look()
            case "think":
                if found := self.leader.think():
                    self.proposed.append(found)
            case "commit" | "commit and die":
                if self.proposed:
                    world.commit(self.proposed.pop(number % len(self.proposed)))  # perhaps of an old term
                if action == "commit and die":  # the answer never comes
                    self.leader = Leader(world)
            case "die":
                self.old.append(self.leader)
                self.leader = Leader(world)
            case "zombie":
                if self.old:
                    zombie = self.old[number % len(self.old)]
                    if number % 2:
                        zombie.look()
                    if found := zombie.think():
                        assert not world.commit(found), "its term is over"
            case "deliver":
                world.deliver(host)
            case "host goes":
                host.is_here = False
            case "host is lost":
                host.is_lost = not host.is_here
            case "host returns":
                host.is_here, host.is_lost = True, False
            case "host hangs" | "host works":
                host.works = action == "host works"
            case "host fails" | "host heals":
                host.fails = action == "host fails"
            case "host fenced":
                host.counts = host.is_here
            case "gate passes":
                world.verdict = Verdict.PASS
            case "gate fails":
                world.verdict = Verdict.FAIL
            case "gate can't tell":
                world.verdict = Verdict.INCONCLUSIVE
            case "targets go" | "targets come":
                world.has_targets = action == "targets come"
            case "drained":
                world.open = 0
            case "edit":
                if not world.run.is_over:  # then it is nobody's business any more
                    world.edit([BLUE, GREEN, Shares((("blue", 3), ("green", 4)), ())][number % 3])
            case "remember":
                self.remembered = world.view()
            case "stale command":
                ask(world, self.remembered, list(Command)[number % len(Command)])
            case _:
                ask(world, world.view(), Command(action))


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans, befores, st.booleans(), st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 31)), max_size=60))
def test_every_history_ends_as_it_says(
    made: Plan, before: Shares, confirms: bool, actions: list[tuple[str, int]]
) -> None:
    chaos = Chaos(made, before)
    for action, number in actions:
        chaos.act(action, number)
    world = chaos.world
    if at(world) is State.PAUSED and not made.pause_timeout:
        assert ask(world, world.view(), Command.RESUME)
    # The last fault is over when this one takes over; hosts stay as they are, for good.
    began, leader = world.now, Leader(world)
    end(world, leader, confirms=confirms)
    limit = made.deadline + made.step_timeout + made.confirm_within + made.pause_timeout
    assert world.now - began <= limit + 20 * TICK, "in time"
    event(
        f"ends {world.run.state.value} because {next((r for r in reversed(reasons(world)) if r is not Reason.DONE), 0)}"
    )
    for name, (shares, _) in world.splits.items():
        wanted = made.steps[-1].weights if at(world) is State.SUCCEEDED else before.weights
        assert shares.weights == wanted, name
    assert not world.claims
    for host in world.hosts:  # all come back
        host.is_here, host.is_lost, host.works, host.fails = True, False, True, False
    through(world, leader, 2)
    assert world.run.is_done and not world.colors and not world.applied().names


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plans, befores, st.sets(st.integers(0, 200), max_size=40), st.integers(0, 12), st.sampled_from(Verdict))
def test_killing_every_controller_changes_nothing(
    made: Plan, before: Shares, kills: set[int], fails_at: int, verdict: Verdict
) -> None:
    """The same plan and the same faults, with and without leaders that die at any step of their work."""
    made = replace(made, deadline=1000.0)
    ends = []
    for doomed in (set[int](), kills):
        world = World(made, before=before)
        leader, count = Leader(world), 0
        while not world.run.is_over and count < 20_000:
            count += 1
            # What is wrong depends on how far it is, not on when.
            moved = world.run.serial >= fails_at and world.run.state not in OVER_OR_BACK
            world.verdict = verdict if moved else Verdict.PASS
            world.tick(TICK)
            for host in world.hosts:
                world.deliver(host)
            leader.look()
            found = leader.think()
            dies = count in doomed
            if found and not (dies and count % 2):
                assert world.commit(found)
            if dies:
                leader = Leader(world)
        ends.append((world.run.state, world.run.step, {name: shares for name, (shares, _) in world.splits.items()}))
    assert ends[0] == ends[1]


OVER_OR_BACK = {State.SUCCEEDED, State.ROLLED_BACK, State.ROLLING_BACK}
