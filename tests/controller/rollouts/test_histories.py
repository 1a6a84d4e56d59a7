"""The rollout machine against random histories: leaders die anywhere, hosts lag and vanish, users ask at any time.

Every history ends SUCCEEDED or ROLLED_BACK with exactly the weights it says, in time, whoever was killed when.
"""

from __future__ import annotations

from dataclasses import replace

from hypothesis import event, given, settings
from hypothesis import strategies as st

from controller.rollouts.commands import Command
from controller.rollouts.plan import OnBehind, OnLost, OnRollback, Plan, Shares, State, Step
from controller.rollouts.transition import Reason, Verdict
from controller.rows import OnOpen
from tests.controller.rollouts.histories import GREEN, TICK, at, end, reasons, through
from tests.controller.rollouts.simulated import BLUE, Leader, Proposal, World, ask, plan
from tests.samples import samples

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


@settings(max_examples=samples(500, many=10_000))
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


@settings(max_examples=samples(200, many=3000))
@given(plans, befores, st.sets(st.integers(0, 200), max_size=40), st.integers(0, 12), st.sampled_from(Verdict))
def test_killing_every_controller_changes_nothing(
    made: Plan, before: Shares, kills: set[int], fails_at: int, verdict: Verdict
) -> None:
    """The same plan and the same faults, with and without leaders that die at any step of their work."""
    made = replace(made, deadline=200.0)  # beyond whatever deaths at 40 of the first 200 moments (50 s) can cost
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
