"""Flips of all traffic between twins under constant load; the whole of it is `make bench-rollout`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tealnet.lab import Lab, api
from tealnet.lab.flips import Flip, flip, initial, judge, loading, quantile
from tealnet.lab.service import BLUE, GREEN, PORT, Service

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

RATE, HELD = 300, 10


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    Lab.remove("t-flips")
    with Lab.up("t-flips", hosts=3) as lab, api.client(lab.context) as client:
        service = Service(lab, client, tenant="shop")
        service.build()
        service.bring_up(GREEN)
        yield service


@pytest.mark.parametrize(("kind", "family", "flips"), [("tcp", 4, 12), ("udp", 6, 5), ("icmp", 4, 5), ("icmp", 6, 5)])
def test_flips_under_load(service: Service, kind: str, family: int, flips: int) -> None:
    """No request fails, none that begins after Sync gets the color from before, no open connection changes color."""
    flip(service.client, {service.web: {BLUE: 1}})
    addresses = service.addresses if family == 4 else service.addresses6
    clients, changes = service.clients(), [initial(BLUE)]
    with ExitStack() as stack:
        for color in (BLUE, GREEN):
            stack.enter_context(service.serving(color))
        held = [
            stack.enter_context(one.running("hold", service.addresses[0], str(PORT), "--count", str(HELD)))
            for one in clients
        ]
        with loading(clients, addresses, port=PORT, rate=RATE, kind=kind) as load:
            for number in range(flips):
                color = (GREEN, BLUE)[number % 2]
                changes.append(flip(service.client, {service.web: {color: 1}}))
                _expect_some(service, changes[-1])
    verdict = judge(load.answers, changes)
    assert (verdict.failed, verdict.reset, verdict.wrong) == (0, 0, 0), str(verdict)
    assert verdict.requests > 50 * flips and len(verdict.apply) == flips, str(verdict)
    assert quantile(verdict.apply, 0.5) < 1000 and quantile(verdict.skew, 0.5) < 1000, verdict
    for one in held:
        got = {key: one.result[key] for key in ("words", "changed", "ended", "silent")}
        assert got == {"words": {BLUE: HELD}, "changed": 0, "ended": 0, "silent": 0}, one.what


def _expect_some(service: Service, change: Flip) -> None:
    """Between two flips there are connections from each host, each answered by the only color with weight."""
    (color,) = change.colors
    for client in service.clients():
        assert client.probe("ask", service.addresses[-1], str(PORT), "--count", "5")["words"] == {color: 5}
