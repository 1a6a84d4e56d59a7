"""Is anything left? 2,000 workloads come and go on a lab and 200 agents are killed: `python -m tests.chaos.soak`.

Looked at when a few rounds have warmed everything up, and at the end: namespaces, links, OVSDB, flows, guards, keys in
etcd, file descriptors, threads and memory of every daemon; memory of those that live on also every few rounds, for its
slope. Exit code 1 if something has grown. Figures are in bench/results/soak.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import linear_regression
from typing import Any

from tealnet import kinds
from tealnet.lab.process import Process
from tealnet.lab.wait import wait_for
from tealnet.v1 import network_pb2, port_pb2, tenant_pb2
from tests.lab.looks import look
from tests.lab.stand import Stand, Store, difference, standing

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "soak.json"
WARM = 4  # rounds before the first look
GROWS = 0.3  # share by which the memory of a daemon may have grown: what it keeps of the past is bounded
EVERY = 5  # rounds between two looks at memory
# KiB for each workload that comes and goes, in the second half. What a controller keeps of the past has an end that is
# not reached here: a ring of 50,000 changes for those who watch, three or four for each workload. So has what etcd
# keeps, half an hour of it, and it is not judged. The heap of an agent takes some thousands of workloads to settle:
# 0.2 to 0.4 in the second half of 6,000.
SLOPE = {"ovsdb-server": 1.0, "ovs-vswitchd": 1.0, "agent": 4.0, "controller": 4.0}
FEW = 4  # descriptors or threads that come and go at any moment
# What etcd is told for a while and then forgets by itself: events, request ids, lineages, heartbeats, released numbers.
_PASSING = ("w/e", "k/i", "k/j", "w/m", "w/b", "w/s/replica", "k/u", "w/n")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="soak")
    parser.add_argument("--ports", type=int, default=2000, help="workloads that come and go in all")
    parser.add_argument("--kills", type=int, default=200, help="agents killed in all; 0: look at their memory, too")
    parser.add_argument("--at-once", type=int, default=25, help="workloads of one round")
    given = parser.parse_args()
    rounds = max(WARM + 2, given.ports // given.at_once)
    with standing("soak", hosts=2) as stand:
        _tenant(stand)
        before: dict[str, Any] = {}
        memory: dict[str, list[tuple[int, int]]] = {}
        began, killed = time.monotonic(), 0
        for number in range(rounds):
            due = given.kills * (number + 1) // rounds
            _round(stand, given.at_once, kills=due - killed)
            killed = due
            if number == WARM - 1:
                before = _measure(stand)
            if (number + 1) % EVERY == 0:
                _sample(stand, memory, workloads=(number + 1) * given.at_once, agents=not given.kills)
            if (number + 1) % 10 == 0:
                print(
                    f"{(number + 1) * given.at_once} workloads, {killed} kills, {time.monotonic() - began:.0f} s",
                    flush=True,
                )
        after, seconds = _measure(stand), time.monotonic() - began
        slopes = {name: round(_slope(found), 3) for name, found in memory.items()}
        lines = _grown(before, after)
        grows = {name: slope for name, slope in slopes.items() if slope > SLOPE.get(name.split()[1], math.inf)}
        lines += [f"{name} grows by {slope} KiB for each workload" for name, slope in grows.items()]
        stand.client.delete("tenants/soak", force=True)
        stand.sync()
        for host in stand.lab.hosts:
            if (now := look(host)) != stand.empty[host.name]:
                lines.append(f"{host.name} is not as it was: {difference(stand.empty[host.name], now)}")
    figures = {"before": before, "after": after, "memory": memory, "slopes": slopes, "left": lines, "seconds": seconds}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=1))
    for name, slope in slopes.items():
        print(f"  {name:32} {slope:+9.3f} KiB for each workload, second half")
    for line in lines:
        print(f"LEFT: {line}")
    print(
        f"{rounds * given.at_once} workloads came and went, {killed} agents were killed; {len(lines)} things are left"
    )
    return 1 if lines else 0


def _sample(stand: Stand, memory: dict[str, list[tuple[int, int]]], *, workloads: int, agents: bool) -> None:
    """Resident KiB of the daemons that nobody kills, when so many workloads have come and gone."""
    machines = [*stand.lab.hosts, stand.lab.controller]
    for machine in machines:
        for name in machine.processes:
            process = machine.process(name)
            if (agents or name != "agent") and process is not None:
                found = _process("", process)[" KiB"]
                memory.setdefault(f"{machine.name} {name}", []).append((workloads, found))


def _slope(found: Sequence[tuple[int, int]]) -> float:
    """KiB for each workload, a straight line through the second half of the samples."""
    late = found[len(found) // 2 :]
    return linear_regression(*zip(*late, strict=True)).slope if len(late) > 1 else 0.0


def _tenant(stand: Stand) -> None:
    stand.client.create(kinds.TENANT, ident="soak", body=tenant_pb2.Tenant())
    body = network_pb2.Network(cidrs=["10.1.0.0/20", "fd01::/64"])
    body.address_quarantine.seconds = 0
    stand.client.create(kinds.NETWORK, parent="tenants/soak", ident="net", body=body)


def _round(stand: Stand, ports: int, *, kills: int) -> None:
    """Workloads appear on both hosts and go again, while agents are killed."""
    batch = port_pb2.BatchCreatePortsRequest(parent="tenants/soak")
    hosts = [host.name for host in stand.lab.hosts]
    for number in range(ports):
        port = port_pb2.Port(network="tenants/soak/networks/net", host=f"hosts/{hosts[number % 2]}")
        batch.requests.add(port_id=f"p{number}", port=port)
    made = stand.client.call(stand.client.ports.BatchCreatePorts, batch)
    assert all(result.HasField("port") for result in made.results), made
    for number in range(kills):
        stand.restart_agent(hosts[number % 2])
    stand.sync(seconds=60)
    for number in range(ports):
        stand.client.delete(f"tenants/soak/ports/p{number}")
    stand.sync(seconds=60)


def _measure(stand: Stand) -> dict[str, Any]:
    """What may not grow."""
    found: dict[str, Any] = {}
    lab, store = stand.lab, Store(stand)
    for prefix in ("w/t/", "k/u/ip/", "k/u/mac/", "k/u/nic/"):  # chores free them some seconds later
        wait_for(lambda prefix=prefix: not store.count(prefix), seconds=60, what=f"no {prefix}", every=0.5)  # type: ignore[misc]
    for host in lab.hosts:
        for section, lines in look(host).items():
            found[f"{host.name} {section}"] = len(lines)
        for name in ("ovsdb-server", "ovs-vswitchd", "agent"):
            found |= _process(f"{host.name} {name}", host.process(name))
    found |= _process("controller", lab.controller.process("controller"))
    keys = store.ctl("get", "--prefix", "--keys-only", store.root).decode().split()
    names = ("/".join(key.removeprefix(store.root).split("/")[:3]) for key in keys)
    kept = Counter("/".join(name.split("/")[:2]) for name in names if not name.startswith(_PASSING))
    return found | {f"keys {name}": count for name, count in kept.items()}


def _process(name: str, process: Process | None) -> dict[str, Any]:
    assert process is not None
    base = Path(f"/proc/{process.pid}")
    resident = int((base / "statm").read_text().split()[1]) * 4
    return {
        f"{name} descriptors": len(list((base / "fd").iterdir())),
        f"{name} threads": len(list((base / "task").iterdir())),
        f"{name} KiB": resident,
    }


def _grown(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    lines = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name, 0), after.get(name, 0)
        most = (
            old * (1 + GROWS)
            if name.endswith("KiB")
            else old + (FEW if name.endswith(("descriptors", "threads")) else 0)
        )
        print(f"  {name:32} {old:>9} {new:>9}")
        if new > most:
            lines.append(f"{name}: {old} → {new}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
