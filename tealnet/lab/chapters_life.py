"""Chapters about life: a move, killed daemons, and nothing left behind."""

from __future__ import annotations

import json
import time
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING

from tealnet import kinds
from tealnet.lab.host import Host
from tealnet.lab.traffic import Workload, capture
from tealnet.lab.wait import wait_for
from tealnet.v1 import port_pb2

if TYPE_CHECKING:
    from tealnet.lab.story import Story

ERA = "0x7406"  # begin of the cookies of flows that no packet meets


def move(story: Story) -> str:
    """acme/web-3 goes from h3 to h2 under a 10 ms ping from h1; afterwards h3 gets none of its packets."""
    watcher, before = story.workload("acme/web-1"), story.workload("acme/web-3")
    with watcher.running("ping", before.v4) as ping:
        watcher.ping(before.v6, count=20, interval=0.02)  # for a while before
        body = port_pb2.Port(name="tenants/acme/ports/web-3", host="hosts/h2")
        story.client.update(body, mask=["host"])
        story.synced()
        after = story.refresh("acme/web-3")
        wait_for(partial(_left, before), seconds=15, what="the old namespace is gone")
        with capture(after.host, "eth0") as there, capture(before.host, "eth0") as elsewhere:
            watcher.ping(after.v6, count=20, interval=0.02)
    got, target = ping.result, ip_address(after.v6).packed.hex()
    story.expect(any(target in f for f in there.result["frames"]), f"{there.what} saw none of its packets")
    astray = [f for f in elsewhere.result["frames"] if target in f]
    story.expect(not astray, f"{len(astray)} packets still went to {before.host.name}")
    story.expect(after.host.name == "h2", f"it is on {after.host.name}")
    story.expect(after.addresses == before.addresses and after.mac == before.mac, "its addresses or MAC changed")
    story.expect(got["longest_gap_ms"] < 1000, f"away for too long: {got}")
    away = f"{got['lost']} of {got['sent']} pings lost, away for {got['longest_gap_ms']:.0f} ms"
    return f"same addresses, now on h2; {away}"


def _left(workload: Workload) -> bool:
    return workload.netns not in workload.host.output(["ip", "netns", "list"]).split()


def agents(story: Story) -> str:
    """Every agent is killed and started again; not one packet is lost."""
    return _killed(story, [(f"h{number}", "agent") for number in (1, 2, 3)])


def controller(story: Story) -> str:
    """The controller, with its etcd, is killed and started again; not one packet is lost."""
    return _killed(story, [("controller", "controller")])


def _killed(story: Story, victims: list[tuple[str, str]]) -> str:
    a, b, c = (story.workload(f"acme/{name}") for name in ("web-1", "web-2", "db-2"))
    for number in (1, 2, 3):  # a link that comes may cost a ping
        host = story.lab.host(f"h{number}")
        wait_for(host.rests, seconds=10, what=f"nothing is done on {host.name}")
    with a.running("ping", b.v4) as first, a.running("ping", c.v6) as second:
        for machine, process in victims:
            story.lab.kill(machine, process)
            story.lab.start(machine, process)
        wait_for(lambda: _complete(story), seconds=40, what="everything on every host again")
    for ping in (first, second):
        story.expect(ping.result["lost"] == 0, f"{ping.what}: {ping.result}")
    sent = first.result["sent"] + second.result["sent"]
    who = victims[0][1] if len(victims) == 1 else f"{len(victims)} {victims[0][1]}s"
    return f"{who} killed and back; 0 of {sent} pings lost"


def _complete(story: Story) -> bool:
    """Whether every host has everything; the controller may not even answer yet."""
    from tealnet.client import ApiError

    try:
        return story.client.sync(timeout=5).complete
    except ApiError:
        return False


def delete(story: Story) -> str:
    """All tenants go with all they hold; no namespace, device, OVS port or tenant flow is left on any host."""
    started = time.monotonic()
    for tenant in list(story.client.list_all(kinds.TENANT)):
        story.client.delete(tenant.name, force=True)
    story.synced()
    for number in (1, 2, 3):
        host = story.lab.host(f"h{number}")
        wait_for(partial(_clean, host), seconds=15, what=f"nothing left on {host.name}")
    took = time.monotonic() - started
    story.workloads.clear()
    return f"in {took:.1f} s; nothing left on h1, h2, h3"


def _clean(host: Host) -> bool:
    return not leftovers(host)


def leftovers(host: Host) -> list[str]:
    """What of any tenant is still on a host: namespaces, devices, OVS ports, guards, flows."""
    found = host.output(["ip", "netns", "list"]).split()
    found += [x["ifname"] for x in json.loads(host.output(["ip", "-j", "link"])) if x["ifname"].startswith("tn")]
    found += [x for x in host.output(["ovs-vsctl", "list-ports", "br-int"]).split() if x.startswith("tn")]
    found += [x for x in host.output(["nft", "list", "ruleset"]).split() if x.startswith("tn")]
    flows = host.output(["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"]).splitlines()
    flows = [line.strip() for line in flows if f"cookie={ERA}" not in line]  # those meet no packet
    found += [line for line in flows if "table=40," in line or "table=3," in line]
    return found
