"""How a leader carries on in the simulated world."""

from __future__ import annotations

from controller.rollouts.commands import Command
from controller.rollouts.plan import Shares, State
from controller.rollouts.transition import Reason
from tests.controller.rollouts.simulated import Leader, World, ask

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
