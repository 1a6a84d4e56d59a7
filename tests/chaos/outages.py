"""Long outages on a lab, one after the other: `python -m tests.chaos.outages [--seconds S] [NAME ...]`.

Histories are made of faults of some seconds. Whoever waits longer the longer something is away (back-offs, retries,
TCP) is found out by these: meanwhile ports come and go, and after the end all is to be as it is to be within the
promise of `settling`. Exit code 1 if it is not although others took few of the processors.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tealnet.client import ApiError
from tealnet.lab import Lab
from tealnet.lab.etcd import ETCD
from tealnet.lab.fabric import Direction, Network
from tealnet.lab.wait import wait_for
from tests.chaos.rig import SETTLED, Rig, rig
from tests.chaos.settling import VSWITCHD, Settling, distribution, logs, settle

SECONDS = 20.0
PORTS = 4  # of each host, that are exchanged meanwhile
_CALL = 3.0  # seconds of a call meanwhile
_BEFORE = 1.0  # seconds before its end from which on logs are shown


@dataclass(frozen=True)
class Outage:
    """How one begins and ends."""

    begin: Callable[[Lab], None]
    end: Callable[[Lab], None]


Process = tuple[str, str]  # its machine's name, and its own


def _each(do: Callable[[str, str], object], whom: Iterable[Process]) -> None:
    for machine, name in whom:
        do(machine, name)


def killed(*whom: Process) -> Outage:
    """These processes are not there."""
    return Outage(lambda lab: _each(lab.kill, whom), lambda lab: _each(lab.start, whom))


def stopped(*whom: Process) -> Outage:
    """They are there and do nothing."""
    return Outage(lambda lab: _each(lab.stop, whom), lambda lab: _each(lab.cont, whom))


def cut(network: Network, direction: Direction, *hosts: str) -> Outage:
    """These hosts are cut off."""

    def begin(lab: Lab) -> None:
        for host in hosts:
            lab.cut(host, network, direction=direction)

    def end(lab: Lab) -> None:
        for host in hosts:
            lab.heal(host, network)

    return Outage(begin, end)


_HOSTS = ("h1", "h2", "h3")
_CONTROLLERS = (("controller", "controller"), ("controller2", "controller"))
_QUORUM = (("etcd1", ETCD), ("etcd2", ETCD))
OUTAGES: dict[str, Outage] = {
    "all controllers killed": killed(*_CONTROLLERS),
    "all controllers stopped": stopped(*_CONTROLLERS),
    "one controller killed": killed(_CONTROLLERS[0]),
    "quorum killed": killed(*_QUORUM),
    "quorum stopped": stopped(*_QUORUM),
    "agents killed": killed(*((host, "agent") for host in _HOSTS)),
    "agents stopped": stopped(*((host, "agent") for host in _HOSTS)),
    "ovsdb-server killed": killed(("h1", "ovsdb-server")),
    "ovsdb-server stopped": stopped(("h1", "ovsdb-server")),
    "vswitchd killed": killed(("h1", "ovs-vswitchd")),
    "vswitchd stopped": stopped(("h1", "ovs-vswitchd")),
    "management cut": cut(Network.MANAGEMENT, Direction.BOTH, *_HOSTS),
    "management cut, in": cut(Network.MANAGEMENT, Direction.IN, *_HOSTS),
    "management cut, out": cut(Network.MANAGEMENT, Direction.OUT, *_HOSTS),
    "underlay cut": cut(Network.UNDERLAY, Direction.BOTH, "h1"),
}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="outages")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="how long each lasts")
    parser.add_argument("--rounds", type=int, default=1, help="how often each")
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(OUTAGES)}; all if none is given")
    given = parser.parse_args()
    found: list[Settling] = []
    there: list[str] = []
    with rig("outages") as place, _tenant(place):
        for number, name in enumerate((given.names or list(OUTAGES)) * given.rounds):
            last = _one(place, OUTAGES[name], there, seconds=given.seconds, number=number)
            found.append(last)
            if name == "ovsdb-server killed":
                last.promise += VSWITCHD
            print(
                f"{name}: as it is to be {last.seconds:.2f} s after its end "
                f"(others took {last.others:.0%} of the processors)",
                flush=True,
            )
            if last.is_late:
                print("\n".join([*last.lines(), *_logs(place, last)]), flush=True)
    distribution(found, say=print)
    return 1 if any(one.is_ours for one in found) else 0


def _one(place: Rig, outage: Outage, there: list[str], *, seconds: float, number: int) -> Settling:
    until = time.monotonic() + seconds
    outage.begin(place.lab)
    try:
        _exchange(place, there, number=number)
        time.sleep(max(until - time.monotonic(), 0))
    finally:
        outage.end(place.lab)
    ended = time.monotonic()
    found = settle(place, since=ended)
    wait_for(lambda: not place.whole(), seconds=SETTLED, what="all is up", every=0.1)
    return found


def _logs(place: Rig, found: Settling) -> Sequence[str]:
    since = time.monotonic() - found.seconds - _BEFORE
    return logs([*place.lab.controllers, *place.lab.hosts], since=since)


@contextmanager
def _tenant(place: Rig) -> Iterator[None]:
    """Whose ports come and go."""
    place.stand.tenant("busy")
    place.stand.network("busy/net", "10.1.0.0/16", "fd01::/64")
    yield
    place.stand.client.delete("tenants/busy", force=True)


def _exchange(place: Rig, there: list[str], *, number: int) -> None:
    """As far as it can be done at all: others come, and the ports of the outages before go."""
    client, patience = place.stand.client, place.stand.client.timeout
    client.timeout = _CALL
    try:
        for host in place.lab.hosts:
            for index in range(PORTS):
                place.stand.port(f"busy/p{number}-{host.name}-{index}", "net", host.name)
                there.append(f"busy/p{number}-{host.name}-{index}")
        for name in there[: -PORTS * len(place.lab.hosts)]:
            place.stand.delete(name)
            there.remove(name)
    except ApiError:
        pass  # nobody takes writes now
    finally:
        client.timeout = patience


if __name__ == "__main__":
    sys.exit(main())
