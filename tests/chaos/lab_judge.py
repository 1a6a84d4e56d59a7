"""The judge of a lab: intent ↔ etcd ↔ each replica ↔ each host's namespaces, links, OVSDB and flows ↔ packets."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from typing import Any

from tealnet import kinds
from tealnet.client import ApiError, Client, Context
from tealnet.lab.traffic import Workload
from tealnet.lab.wait import wait_for
from tealnet.v1 import network_pb2, port_pb2
from tests.chaos.history import Done, violations
from tests.chaos.lab_store import store_argv
from tests.chaos.operations import LABEL
from tests.chaos.rig import Rig
from tests.lab.looks import look
from tests.lab.stand import OFF, difference, reaches

_KINDS = (kinds.TENANT, kinds.NETWORK, kinds.ROUTER, kinds.PORT, kinds.GROUP, kinds.ROLLOUT)


def judge(rig: Rig, history: list[Done]) -> list[str]:
    """What is wrong, one line each."""
    lines: list[str] = []
    seen = []
    for controller in rig.lab.controllers:
        context = dict(rig.lab.context) | {"server": f"unix:{controller.socket}"}
        context.pop("lab")
        with Client(Context(**context)) as client:
            wait_for(lambda client=client: _answers(client), seconds=30, what=f"{controller.name} serves")  # type: ignore[misc]
            client.revision = rig.stand.client.revision
            seen.append({o.name: o for kind in _KINDS for o in client.list_all(kind)})
    for other in seen[1:]:
        names = [n for n in seen[0].keys() | other.keys() if _intent(seen[0].get(n)) != _intent(other.get(n))]
        lines += [f"replicas differ in {name}: {seen[0].get(name)} {other.get(name)}" for name in names]
    final = {name: o.labels.get(LABEL, "") for name, o in seen[0].items()}
    lines += violations(history, final)
    lines += _store(rig)
    ports = [o for o in seen[0].values() if isinstance(o, port_pb2.Port)]
    networks = {o.name: o for o in seen[0].values() if isinstance(o, network_pb2.Network)}
    lines += [f"{p.name} is {p.status}" for p in ports if p.host and p.status.state != port_pb2.PortStatus.STATE_ACTIVE]
    for host in rig.lab.hosts:
        own = [p for p in ports if p.host == f"hosts/{host.name}"]
        lines += [f"{host.name}: {line}" for line in _host(rig, host, own)]
    lines += list(_packets(rig, ports, networks))
    return lines


def _answers(client: Client) -> bool:
    """Others say of a replica that has just been killed that it lives, until its lease ends."""
    try:
        client.status()
    except ApiError:
        return False
    return True


def _intent(found: Any) -> Any:
    """Without what is computed when it is read."""
    if found is None:
        return None
    copy = type(found)()
    copy.CopyFrom(found)
    if "status" in copy.DESCRIPTOR.fields_by_name:
        copy.ClearField("status")
    return copy


def _store(rig: Rig) -> list[str]:
    """Looked at from inside a controller's machine, by a process of its own."""
    argv = store_argv(rig.lab, "tests.chaos.store_look")
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    if done.returncode:
        return [f"the store can't be looked at: {done.stderr[-500:]}"]
    return [f"store: {line}" for line in done.stdout.splitlines()]


def _host(rig: Rig, host: Any, ports: list[Any]) -> Iterator[str]:
    """What is there is what the API says, and what a new process would make of it."""
    now = look(host)
    tenants = {p.name.split("/")[1] for p in ports}
    assert tenants or not ports
    wanted = {f"{p.name.split('/')[1]}.{p.attachment.namespace or p.name.rpartition('/')[2]}" for p in ports}
    spaces = {line for line in now["spaces"] if " " not in line}
    if spaces != wanted:
        yield f"namespaces {sorted(spaces ^ wanted)} should not be, or are missing"
    for port in ports:
        space = f"{port.name.split('/')[1]}.{port.attachment.namespace or port.name.rpartition('/')[2]}"
        for address in port.addresses:
            words = f"{space} {port.attachment.interface or 'eth0'} {address}/"
            if not any(line.startswith(words) for line in now["spaces"]):
                yield f"{port.name}: {address} is not on its interface"
    devices = {port.status.device for port in ports}
    plugged = {line.split('"')[1] for line in now["ports"] if '"tn' in line}
    if plugged != devices:
        yield f"OVSDB has the ports {sorted(plugged ^ devices)} too many or too few"
    links = {line.split()[0] for line in now["links"] if line.startswith("tn")}
    if links != devices:
        yield f"links {sorted(links ^ devices)} should not be, or are missing"
    if errors := [line for line in now["interfaces"] if "tn" in line and '"error"' in line]:
        yield f"interfaces with errors: {errors}"
    # A process without memory makes of what it is told exactly what is there: so it was right, flow by flow.
    (host.disk("/var/lib/tealnet") / "checkpoint").unlink(missing_ok=True)
    rig.stand.restart_agent(host.name)  # it has written nothing since: there was no news
    rig.stand.sync()
    again = look(host)
    if again != now:
        yield f"a new agent changed: {difference(now, again)}"


def _packets(rig: Rig, ports: list[Any], networks: dict[str, Any]) -> Iterator[str]:
    """Everybody in a routing domain reaches everybody of the same color, and nobody else's address."""
    bound = [p for p in ports if p.host]
    loads = {p.name: rig.stand.workload(f"{p.name.split('/')[1]}/{p.name.rpartition('/')[2]}") for p in bound}

    def domain(port: Any) -> str:
        network = networks[port.network]
        return str(network.router or network.name)

    def is_open(port: Any) -> bool:
        return bool(networks[port.network].policy == OFF) or port.name.startswith("tenants/anchor/")

    jobs: list[tuple[Workload, str, str, bool]] = []
    for source in bound:
        near = [p for p in ports if domain(p) == domain(source)]
        known = {a for p in near for a in p.addresses}
        for target in bound:
            if target is source:
                continue
            if domain(target) != domain(source):
                if not known.intersection(target.addresses):
                    jobs += [(loads[source.name], target.name, a, False) for a in target.addresses[:1]]
            elif source.color == target.color and is_open(source) and is_open(target):
                versions = {ip_address(a).version for a in source.addresses}
                jobs += [
                    (loads[source.name], target.name, a, True)
                    for a in target.addresses
                    if ip_address(a).version in versions
                ]
    by_source: dict[str, list[tuple[Workload, str, str, bool]]] = {}
    for job in jobs:
        by_source.setdefault(job[0].name, []).append(job)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(_ask, by_source.values()):
            yield from found


def _ask(jobs: list[tuple[Workload, str, str, bool]]) -> list[str]:
    """All targets of one workload at once; who must answer gets a second chance on a busy machine."""
    source = jobs[0][0]
    wanted = {address for _, _, address, should in jobs if should}
    unwanted = {address for _, _, address, should in jobs if not should} - wanted
    lines = []
    answered = reaches(source, *wanted) if wanted else {}
    missing = [a for a, so in answered.items() if not so]
    if missing:
        time.sleep(0.5)
        missing = [a for a, so in reaches(source, *missing).items() if not so]
    lines += [f"{source.name} does not reach {a}" for a in missing]
    reached = reaches(source, *unwanted, wait=0.3) if unwanted else {}
    lines += [f"{source.name} reaches {a} of another domain" for a, so in reached.items() if so]
    return lines
