"""What happens in a rollout, by example."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controller.rollouts.commands import Command
from controller.rollouts.machine import decide
from controller.rollouts.plan import OnBehind, OnLost, OnRollback, Shares, State, Step
from controller.rollouts.transition import Reason, Seen, Verdict
from controller.rows import OnOpen
from tests.controller.rollouts.histories import GREEN, TICK, at, end, reasons, through
from tests.controller.rollouts.simulated import BLUE, WEB, Leader, World, ask, plan

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
