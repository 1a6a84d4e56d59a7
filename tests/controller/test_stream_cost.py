"""What one change costs on the stream: at most 500 bytes to each host that is told, however long its names are.

A host that gets its first port of a routing domain, and one whose networks join another, is told the whole scope: that
is no change of something that it knows.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from controller.etcd.types import Put
from controller.outbox import Outbox
from tests.controller.deriving import KEYS, MAKE, Derivation
from tests.controller.making import uid_of

MOST = 500  # bytes
LONG = 63  # characters: the longest names that there are
DB_CIDRS = ["10.1.0.0/24", "fd01::/64"]
LATE = 2**40  # a revision of a store that has lived for long
HOSTS = ("h1", "h2", "h3")


def of(collection: str, name: str, long: int = LONG) -> str:
    return f"tenants/{'t' * long}/{collection}/{name.rjust(long, 'x')}"


WEB, DB, ROUTER = of("networks", "web"), of("networks", "db"), of("routers", "main")
Ops = tuple[Put | bytes, ...]


def port(number: int, host: str = "h1", network: str = WEB, addresses: Sequence[str] = (), allowed: str = "") -> Put:
    own = addresses or (f"10.0.0.{number}", f"fd00::{number:x}")
    return MAKE.port(of("ports", f"p{number}"), network, own, host=host, allowed=[allowed] if allowed else ())


def gone(number: int, host: str = "h1", *, moved_to: str = "", due: bool = False) -> Put:
    return MAKE.tombstone(host, of("ports", f"p{number}"), moved_to=moved_to, network=WEB, due=due)


def routed(*route: str) -> Put:
    """The router of both networks: its domain has the longest number that there is."""
    return MAKE.router(ROUTER, 2**32 - 1, [(route[0], route[1])] if route else ())


def base() -> Derivation:
    """Every host has ports of both networks; tunnels are IPv6, so that peers are as large as they get."""
    derivation = Derivation().put(*(MAKE.host(name, n, vtep=f"2001:db8::{n}") for n, name in enumerate(HOSTS, 1)))
    derivation.put(routed(), MAKE.network(WEB, 1, router=ROUTER), MAKE.network(DB, 2, DB_CIDRS, router=ROUTER))
    for n, name in enumerate(HOSTS):
        derivation.put(port(5 + n, name), port(105 + n, name))
        derivation.put(port(200 + n, name, DB, (f"10.1.0.{200 + n}", f"fd01::{200 + n:x}")))
    return derivation.settle()


MOVE: Ops = (port(5, "h2"), gone(5, moved_to="h2"))
APPLIED = MAKE.applied(of("ports", "p5"), "h2")
CHANGES: dict[str, tuple[list[Ops], Ops, set[str]]] = {  # what came before, the change, who is told
    "a port": ([], (port(20),), set(HOSTS)),
    "a port goes": ([], (KEYS.intent(of("ports", "p5")), gone(5)), set(HOSTS)),
    "an address more": ([], (port(5, addresses=("10.0.0.5", "fd00::5", "10.0.0.99")),), set(HOSTS)),
    "a prefix to send from": ([], (port(5, allowed="10.9.0.0/16"),), set(HOSTS)),
    "a move begins": ([], MOVE, set(HOSTS)),
    "the new host has it": ([MOVE], (APPLIED,), set(HOSTS)),
    "a move ends": ([MOVE, (APPLIED,)], (gone(5, moved_to="h2", due=True),), set(HOSTS)),
    "a CIDR more": ([], (MAKE.network(WEB, 1, ["10.0.0.0/24", "fd00::/64", "fd07::/64"], router=ROUTER),), set(HOSTS)),
    "another tunnel address": ([], (MAKE.host("h2", 2, vtep="2001:db8::9"),), {"h1", "h3"}),
    "a route": ([], (routed("10.99.0.0/16", "10.1.0.9"),), set(HOSTS)),
    "labels, DNS, a description": (
        [],
        (MAKE.network(WEB, 1, router=ROUTER, labels={"a": "b"}, dns={"servers": ["10.0.0.53"]}, description="x"),),
        set(),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_change_is_small(change: str) -> None:
    before, ops, told = CHANGES[change]
    sizes = cost(before, ops)
    assert sizes.keys() == told
    assert all(size <= MOST for size in sizes.values()), sizes


def test_also_for_the_host_of_a_next_hop() -> None:
    """It is told three things: the route, and what its port may send from, to guard it and to know it by."""
    port_ = "tenants/acme/ports/firewall-1"
    before: list[Ops] = [(MAKE.port(port_, WEB, ["10.0.0.77", "fd00::77"], host="h2"),)]
    assert cost(before, (routed("10.99.0.0/16", "10.0.0.77"),))["h2"] <= MOST


def cost(before: list[Ops], ops: Ops) -> dict[str, int]:
    """Bytes of the unit that each host gets for these writes, by host; none for who gets nothing."""
    derivation = base()
    for earlier in before:
        derivation.put(*earlier).settle()
    outboxes = {name: Outbox(derivation.resources, uid_of(f"hosts/{name}")) for name in HOSTS}
    for outbox in outboxes.values():
        for scope in derivation.resources.scopes_of(outbox.host_uid):
            outbox.mark_whole(1, scope)
        outbox.cut(LATE, (2**32 - 1, "f" * 32))
        outbox.taken(1)
    derivation.put(*ops).settle()
    sizes: dict[str, int] = {}
    for name, outbox in outboxes.items():
        for scope, keys in derivation.changed.items():
            if scope in outbox.scopes:
                outbox.mark(LATE, scope, keys)
        assert outbox.scopes >= derivation.resources.scopes_of(outbox.host_uid), "no scope is new"
        if outbox.is_due:
            sizes[name] = sum(map(len, outbox.cut(LATE, (2**32 - 1, "f" * 32)).parts))
    return sizes
