"""Chapters about blue and green: a web service changes color under constant load, and leaves a green that breaks.

Clients are in a shared network, one on each host, and open connections all the time, whatever becomes of them. Every
one is judged by the colors that had weight while it was opened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import TYPE_CHECKING

from tealnet import kinds
from tealnet.lab.errors import LabError
from tealnet.lab.flips import Flip, Load, Verdict, flip, initial, judge, loading
from tealnet.lab.service import BLUE, GREEN, PORT, Service
from tealnet.lab.wait import wait_for
from tealnet.v1 import rollout_pb2, split_pb2

if TYPE_CHECKING:
    from tealnet.lab.story import Story

TENANT = "shop"
RATE = 300.0  # connections a second, of all clients
HELD = 10
CANARY = {BLUE: 90, GREEN: 10}


def _service(story: Story) -> Service:
    return Service(story.lab, story.client, tenant=TENANT)


def blue(story: Story) -> str:
    """A web service on 3 hosts, all of it blue; clients of a shared network ask it all the time."""
    service = _service(story)
    service.build()
    with service.serving(BLUE), _loading(service) as load:
        _while(service, seconds=1.0)
    return f"3 servers, 3 clients; {_expect_well(story, load, [initial(BLUE)])}"


def green(story: Story) -> str:
    """Under load green comes up with the same addresses; a client in green tests it, and nobody else gets there."""
    service = _service(story)
    with service.serving(BLUE), _loading(service) as load:
        service.bring_up(GREEN)
        with service.serving(GREEN), service.tester(GREEN) as tester:
            for address in service.addresses:
                words = tester.probe("ask", address, str(PORT), "--count", "20")["words"]
                story.expect(words == {GREEN: 20}, f"the tester in green asks {address}: {words}")
    twins = zip(service.servers(BLUE), service.servers(GREEN), strict=True)
    story.expect(all((a.mac, a.addresses) == (b.mac, b.addresses) for a, b in twins), "green is no twin of blue")
    found = _expect_well(story, load, [initial(BLUE)])
    return f"same addresses and MACs; 60 tests inside green; meanwhile {found}"


def switch(story: Story) -> str:
    """10 % of new connections go to green, then all; connections that are open stay with blue."""
    service = _service(story)
    changes = [initial(BLUE)]
    with service.serving(BLUE), service.serving(GREEN), ExitStack() as stack:
        words = (service.addresses[0], str(PORT), "--count", str(HELD))
        held = [stack.enter_context(client.running("hold", *words)) for client in service.clients()]
        with _loading(service) as load:
            for weights, seconds in ((CANARY, 3.0), ({GREEN: 1}, 1.0)):
                changes.append(flip(service.client, {service.web: weights}))
                _while(service, seconds=seconds)
    for one in held:
        got = {key: one.result[key] for key in ("words", "changed", "ended", "silent")}
        story.expect(got == {"words": {BLUE: HELD}, "changed": 0, "ended": 0, "silent": 0}, f"{one.what}: {got}")
    found = _expect_well(story, load, changes)
    canary, full = changes[1:]
    asked = Counter(
        one.word for each in load.answers.values() for one in each if canary.synced <= one.opened < full.called
    )
    share = 100 * asked[GREEN] / asked.total()
    story.expect(4 < share < 17, f"the canary got {share:.1f} % of {asked.total()} connections")
    return f"canary {share:.0f} %, then all; {found}; {HELD * len(held)} open connections stayed blue"


def rollback(story: Story) -> str:
    """A rollout gives 10 % to a green that breaks on one host: a gate sees it, and everything goes back to blue."""
    service = _service(story)
    before = flip(service.client, {service.web: {BLUE: 1}})
    name = f"{service.parent}/rollouts/web-2"
    with service.serving(BLUE), _loading(service) as load, ExitStack() as well:
        well.enter_context(service.serving(GREEN))
        service.client.create(kinds.ROLLOUT, parent=service.parent, ident="web-2", body=_plan(service))
        wait_for(partial(_is, service, name, "Applied"), seconds=20, what="the canary on all hosts", every=0.1)
        _while(service, seconds=0.5)
        well.close()  # the servers of green end
        try:
            wait_for(partial(_over, service, name), seconds=20, what="the rollback", every=0.1)
        except LabError as error:
            raise LabError(f"{error}: {' '.join(str(service.client.get(name)).split())}") from None
        service.synced()
        after = flip(service.client, {service.web: {BLUE: 1}})  # as it is already: from here on all must be well
        _while(service, seconds=0.5)
    done = service.client.get(name)
    story.expect(done.state == rollout_pb2.Rollout.STATE_ROLLED_BACK, f"the rollout ended in {done}")
    story.expect(any(one.reason == "GateFailed" for one in done.history), f"no gate failed: {done.history}")
    late = {who: [one for one in each if one.opened >= after.called] for who, each in load.answers.items()}
    final = judge(late, [initial(BLUE)])
    story.expect(final.requests > 0 and final.failed == final.wrong == 0, f"after the rollback: {final}")
    broken = Flip(before.synced + 1, before.synced + 1, after.synced, frozenset({BLUE, GREEN}))
    whole = judge(load.answers, [initial(BLUE), broken])
    story.expect(not whole.wrong and whole.failed < 0.3 * whole.requests, str(whole))
    back = _seconds_back(done)
    lost = f"{whole.failed} of {whole.requests} requests met the broken green"
    return f"gate failed, {1000 * back:.0f} ms later all is blue; {lost}, 0 of {final.requests} failed afterwards"


def _plan(service: Service) -> rollout_pb2.Rollout:
    """No connection stays open here, so there is nothing to cut on the way back."""
    keep = rollout_pb2.Rollout.ON_ROLLBACK_KEEP
    plan = rollout_pb2.Rollout(networks=[service.web], target=GREEN, on_open=split_pb2.ON_OPEN_KEEP, on_rollback=keep)
    first = plan.steps.add(weights=CANARY)
    first.hold.FromSeconds(60)
    plan.steps.add(weights={GREEN: 1})
    probe = plan.gates.add().probe
    probe.kind, probe.port, probe.network, probe.failures = rollout_pb2.ProbeGate.KIND_TCP, PORT, service.web, 2
    probe.interval.FromMilliseconds(200)
    return plan


def _is(service: Service, name: str, reason: str) -> bool:
    return bool(service.client.get(name).reason == reason)


def _over(service: Service, name: str) -> bool:
    over = (rollout_pb2.Rollout.STATE_ROLLED_BACK, rollout_pb2.Rollout.STATE_SUCCEEDED)
    return service.client.get(name).state in over


def _seconds_back(done: rollout_pb2.Rollout) -> float:
    """From the gate's verdict to the end of it."""
    failed = next(one.time.ToNanoseconds() for one in done.history if one.reason == "GateFailed")
    return float(done.history[-1].time.ToNanoseconds() - failed) / 1e9


def _loading(service: Service) -> AbstractContextManager[Load]:
    return loading(service.clients(), service.addresses, port=PORT, rate=RATE)


def _while(service: Service, *, seconds: float) -> None:
    """Let the load go on for a while, pinging."""
    service.clients()[0].ping(service.addresses[-1], count=round(seconds / 0.05), interval=0.05)


def _expect_well(story: Story, load: Load, changes: Sequence[Flip]) -> str:
    """No error, no wrong color; says so in figures."""
    verdict = judge(load.answers, changes)
    story.expect(verdict.requests > 0 and verdict.failed == verdict.wrong == 0, str(verdict))
    return _figures(verdict)


def _figures(verdict: Verdict) -> str:
    text = f"{verdict.requests} requests, {verdict.failed} errors, {verdict.wrong} of a wrong color"
    return f"{text}, skew {max(verdict.skew):.0f} ms" if verdict.skew else text
