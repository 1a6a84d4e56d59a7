"""One seeded history in the simulation: operations and faults, then healing, then the judge."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from controller import outbox
from controller.errors import ApiError
from tealnet.v1 import rollout_pb2
from tests.chaos import loop as loops
from tests.chaos.faults import Faults
from tests.chaos.judge import judge, leftovers, unsettled
from tests.chaos.operations import Operations
from tests.chaos.replica import Gone
from tests.chaos.site import Site
from tests.chaos.skew import Skew, Wire

SKEWS = (Skew.NONE, Skew.NONE, Skew.NONE, Skew.EARLIER, Skew.LATER)  # one of these
STEPS = (30, 60, 60, 120)  # one of these; one step in three is a fault
LOG = os.environ.get("CHAOS_LOG", "CRITICAL")  # what daemons say of a history that is run again
SETTLES = 60.0  # virtual seconds until everything must be as it is to be after the last fault
MOVES = 20.0  # virtual seconds until moves of ports must be over, too
DONE = (rollout_pb2.Rollout.STATE_SUCCEEDED, rollout_pb2.Rollout.STATE_ROLLED_BACK)


@dataclass
class Verdict:
    """Of one history."""

    seed: int
    wrong: list[str]
    settled: float = 0.0  # virtual seconds from the last fault on
    calls: int = 0
    acknowledged: int = 0
    lasted: float = 0.0  # virtual seconds
    trace: Sequence[str] = field(default_factory=list)


def directory_of(pid: int) -> Path:
    """Where the process of a history keeps the disks of its hosts: in memory, if there is such a place."""
    return Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()) / f"tealnet-chaos-{pid}"


@contextmanager
def simulated(seed: int, *, hosts: int, replicas: int, skew: Skew = Skew.NONE) -> Iterator[Site]:
    """A site; this operating-system process's clocks and chance are its own from now on, so one per process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(LOG)))
    outbox.PART = 1024  # bytes: units of many parts, so that some break off half-way
    loop = loops.SimLoop()
    dice = loops.install(loop, seed)
    asyncio.set_event_loop(loop)
    directory = directory_of(os.getpid())
    try:
        yield Site(loop, dice, directory, hosts=hosts, replicas=replicas, wire=Wire(skew))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def run(seed: int) -> Verdict:
    """One history."""
    size = random.Random(f"size {seed}")
    hosts, replicas, skew = size.choice([2, 3, 3, 4]), size.choice([1, 2, 2, 3]), size.choice(SKEWS)
    with simulated(seed, hosts=hosts, replicas=replicas, skew=skew) as site:
        loop, verdict = site.loop, Verdict(seed, [])
        site.note(f"{hosts} hosts, {replicas} replicas, versions on the other side: {skew.value}")
        try:
            loop.run_until_complete(_history(site, random.Random(f"history {seed}"), verdict))
        except loops.Deadlock:
            verdict.wrong.append("nobody does anything any more")
        except AssertionError as error:
            verdict.wrong += [str(error), unsettled(site), *site.bugs, *loop.bugs, *site.dead()]
        verdict.trace = site.trace
        verdict.calls = len(site.history)
        verdict.acknowledged = sum(done.result == "ok" for done in site.history)
        verdict.lasted = loop.now - 1000
    return verdict


async def _history(site: Site, dice: random.Random, verdict: Verdict) -> None:
    operations, faults = Operations(dice, site.names), Faults(site, dice)
    await site.begin(operations)
    await site.until(lambda: not unsettled(site), SETTLES, "a beginning")
    under_way: dict[int, asyncio.Task[None]] = {}

    async def work(number: int) -> None:
        call = operations.next()
        done = await site.clients[number].do(call)
        if done.result == "ok":
            operations.known.note(call)

    for _ in range(dice.choice(STEPS)):
        if dice.random() < 1 / 3:
            faults.begin()
        else:
            free = [n for n in range(len(site.clients)) if n not in under_way or under_way[n].done()]
            if free:
                number = dice.choice(free)
                under_way[number] = site.loop.outside(work(number))
        await asyncio.sleep(dice.choice([0, 0.001, 0.01, 0.1, 0.5, 1.5]) * dice.random())
    await asyncio.gather(*under_way.values())
    faults.heal()
    accepting = site.loop.outside(_accept(site))
    verdict.settled = await site.until(lambda: not unsettled(site), SETTLES, "all as it is to be")
    await _end_rollouts(site)
    verdict.wrong = await _judged(site)
    accepting.cancel()
    if verdict.wrong or dice.random() < 0.5:
        return
    for tenant in operations.last():
        await _gone(site, operations, tenant)
    site.note("CLEARED")
    await site.until(lambda: not unsettled(site), SETTLES, "all as it is to be without tenants")
    try:
        await site.until(lambda: not leftovers(site), 200, "nothing is left")
    except AssertionError:
        verdict.wrong = leftovers(site)


async def _accept(site: Site) -> None:
    """There is an admin who does what conditions of hosts ask for."""
    while True:
        await asyncio.sleep(1)
        with suppress(ApiError, Gone, TimeoutError):
            await site.accept()


async def _gone(site: Site, operations: Operations, tenant: str) -> None:
    """Delete a tenant with all it has."""
    client = site.clients[0]
    for _ in range(20):
        if (await client.do(operations.remove("tenant", tenant, force=True))).result == "ok":
            return
        if (await client.do(operations.get("tenant", tenant, strong=True))).result == "missing":
            return
        await asyncio.sleep(1)
    raise AssertionError(f"{tenant} is not deleted: {site.trace[-4:]}")


async def _judged(site: Site) -> list[str]:
    """What is still wrong when all that chores and moves have to do is done."""
    began = site.loop.now
    while True:
        await site.until(lambda: not unsettled(site), SETTLES, "all as it is to be after the rollouts")
        if not (wrong := await judge(site)) or site.loop.now - began > MOVES:
            return wrong
        await asyncio.sleep(2)


async def _end_rollouts(site: Site) -> None:
    """Every rollout that nobody holds up ends by itself."""
    replica = next(iter(site.replicas.values()))
    request = rollout_pb2.ListRolloutsRequest(parent="tenants/-")

    async def running() -> list[str]:
        found = await replica.call("rollout", "ListRollouts", request)
        return [
            f"{r.name} {rollout_pb2.Rollout.State.Name(r.state)} {r.status.waiting}"
            for r in found.rollouts
            if r.state not in DONE
        ]

    began = site.loop.now
    while left := await running():
        assert site.loop.now - began < 120, f"rollouts do not end: {left}"
        await asyncio.sleep(1)
