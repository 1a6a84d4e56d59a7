"""Chapters about what must not pass, seen by capture and not only by a ping that fails.

Every capture is proved able to see: a permitted packet with the same mark must be in it.
"""

from __future__ import annotations

import json
import secrets
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tealnet.lab.traffic import Running, Workload
from tealnet.probe import frames

if TYPE_CHECKING:
    from tealnet.lab.story import Story

ROUTER_MAC = "02:74:6e:00:00:01"


def tenants(story: Story) -> str:
    """Captures on every port of globex while all of acme talks to every address, and the reverse."""
    captured = sent = 0
    for talking, silent in (("acme", "globex"), ("globex", "acme")):
        speakers = [w for w in story.workloads.values() if w.name.startswith(f"{talking}/")]
        listeners = [w for w in story.workloads.values() if w.name.startswith(f"{silent}/")]
        foreign = {frames.mac_bytes(w.mac).hex() for w in speakers}
        mark = secrets.token_hex(8)
        with ExitStack() as stack:
            captures = [stack.enter_context(w.running("sniff", "eth0")) for w in listeners]
            own = stack.enter_context(speakers[1].running("sniff", "eth0"))
            for speaker in speakers:
                out = [
                    frames.udp_frame(src_mac=speaker.mac, dst_mac=mac, src=source, dst=target, data=mark.encode())
                    for listener in (*listeners, *speakers)
                    for source, target in ((speaker.v4, listener.v4), (speaker.v6, listener.v6))
                    for mac in (listener.mac, ROUTER_MAC, frames.BROADCAST)
                    if listener is not speaker
                ]
                speaker.probe("send", "eth0", *(f.hex() for f in out))
                sent += len(out)
        story.expect(_count(own, mark) > 0, "the capture of the permitted packets saw none of them")
        for capture in captures:
            leaked = [f for f in capture.result["frames"] if mark.encode().hex() in f or f[12:24] in foreign]
            story.expect(not leaked, f"{capture.what}: {len(leaked)} frames of {talking}, e.g. {leaked[:1]}")
            captured += 1
    return f"{sent} frames sent, {captured} captures, 0 foreign frames"


def _count(capture: Running, mark: str) -> int:
    return sum(mark.encode().hex() in frame for frame in capture.result["frames"])


def spoofs(me: Workload, peer: Workload, other: Workload, *, mark: bytes) -> dict[str, bytes]:
    """Lies by name: `me` pretends to be `other`, to `peer`."""

    def udp(**changed: Any) -> bytes:
        fields: dict[str, Any] = {"src_mac": me.mac, "dst_mac": peer.mac, "src": me.v4, "dst": peer.v4, "data": mark}
        return frames.udp_frame(**{**fields, **changed})

    v6 = {"src": me.v6, "dst": peer.v6}
    nd = {"src_mac": me.mac, "dst_mac": peer.mac, "src": me.v6, "dst": peer.v6}
    unknown = "02:de:ad:be:ef:01"
    return {
        "MAC of another (v4)": udp(src_mac=other.mac),
        "MAC of another (v6)": udp(src_mac=other.mac, **v6),
        "unknown MAC": udp(src_mac=unknown),
        "router's MAC": udp(src_mac=ROUTER_MAC),
        "address of another (v4)": udp(src=other.v4),
        "address of another (v6)": udp(src=other.v6, dst=peer.v6),
        "gateway's address": udp(src="10.0.0.1"),
        "foreign address": udp(src="192.0.2.77"),
        "unspecified source": udp(src="0.0.0.0"),
        "foreign v6 address": udp(src="2001:db8::7", dst=peer.v6),
        "802.1Q tag 100": udp(vlan=100),
        "priority tag": udp(vlan=0),
        "802.1Q tag, v6": udp(vlan=100, **v6),
        "ARP reply for another": frames.arp_frame(
            src_mac=me.mac, op=2, sha=me.mac, spa=other.v4, tha=peer.mac, tpa=peer.v4, dst_mac=peer.mac
        ),
        "ARP request as another": frames.arp_frame(
            src_mac=me.mac, op=1, sha=me.mac, spa=other.v4, tha="00:00:00:00:00:00", tpa=peer.v4
        ),
        "ARP with another's hardware address": frames.arp_frame(
            src_mac=me.mac, op=1, sha=other.mac, spa=me.v4, tha="00:00:00:00:00:00", tpa=peer.v4
        ),
        "gratuitous ARP for the gateway": frames.arp_frame(
            src_mac=me.mac, op=1, sha=me.mac, spa="10.0.0.1", tha="00:00:00:00:00:00", tpa="10.0.0.1"
        ),
        "neighbour advertisement for another": frames.nd_frame(kind=136, target=other.v6, lladdr=me.mac, **nd),
        "solicitation with another's hardware address": frames.nd_frame(
            kind=135, target=peer.v6, lladdr=other.mac, **nd
        ),
        "rogue router advertisement": frames.router_advertisement(src_mac=me.mac, src=me.v6),
    }


def spoofing(story: Story) -> str:
    """Each lie is sent to a peer on the same and on another host; captures there see none of it."""
    me, other = story.workload("acme/web-1"), story.workload("acme/web-3")
    near, far = story.workload("acme/web-1b"), story.workload("acme/web-2")
    tried = 0
    for peer in (near, far):
        mark = secrets.token_hex(8)
        lies = spoofs(me, peer, other, mark=b"lie" + mark.encode())
        truth = frames.udp_frame(
            src_mac=me.mac, dst_mac=peer.mac, src=me.v4, dst=peer.v4, data=b"truth" + mark.encode()
        )
        with peer.running("sniff", "eth0") as capture:
            me.probe("send", "eth0", *(f.hex() for f in lies.values()), truth.hex())
        seen = capture.result["frames"]
        story.expect(any((b"truth" + mark.encode()).hex() in f for f in seen), f"{capture.what} saw nothing at all")
        for name, frame in lies.items():
            payload = (b"lie" + mark.encode()).hex()
            passed = [f for f in seen if payload in f or f[: len(frame.hex())] == frame.hex()]
            story.expect(not passed, f"{name}: reached {peer.name}: {passed[:1]}")
        arp = [
            f
            for f in seen
            if f[24:28] == "0806" or (f[24:30] == "86dd60" and f[40:42] == "3a" and f[108:110] in ("86", "88"))
        ]
        story.expect(not arp, f"ARP, advertisements reached {peer.name}: {arp[:1]}")
        tried += len(lies)
    return f"{tried} lies of {tried // 2} kinds, 0 passed; the truth passed"


def hosts(story: Story) -> str:
    """From a workload: ARP, UDP and TCP to every address of its host, with guessed neighbours, v4 and v6."""
    me = story.workload("acme/web-1")
    links = json.loads(me.host.output(["ip", "-j", "address"]))
    v4 = {a["local"] for link in links for a in link["addr_info"] if a["family"] == "inet"}
    v6 = {a["local"] for link in links for a in link["addr_info"] if a["family"] == "inet6" and a["scope"] == "global"}
    local = {a["local"] for link in links for a in link["addr_info"] if a["family"] == "inet6" and a["scope"] == "link"}
    macs = {link["address"] for link in links if link.get("address", "00:00:00:00:00:00") != "00:00:00:00:00:00"}
    targets = sorted(a for a in v4 | v6 if a not in ("127.0.0.1", "::1"))
    server = me.host.popen(_serve_argv(), netns="")
    try:
        assert server.stdout is not None
        story.expect(server.stdout.readline().strip() == "ready", "the listener on the host did not start")
        mark = secrets.token_hex(8).encode()
        out = [
            frames.udp_frame(src_mac=me.mac, dst_mac=mac, src=me.v4, dst=target, data=mark, dport=7001)
            for mac in macs
            for target in targets
            if ":" not in target
        ] + [
            frames.udp_frame(src_mac=me.mac, dst_mac=mac, src=me.v6, dst=target, data=mark, dport=7001)
            for mac in macs
            for target in targets
            if ":" in target
        ]
        out += [
            frames.arp_frame(src_mac=me.mac, op=1, sha=me.mac, spa=me.v4, tha="00:00:00:00:00:00", tpa=target)
            for target in targets
            if ":" not in target
        ]
        with me.running("sniff", "eth0") as capture:
            me.probe("send", "eth0", *(f.hex() for f in out))
            scoped = [f"{a}%eth0" for a in sorted(local)]
            got = me.probe("reach", "7001", *targets, *scoped, "--wait", "0.3")
        story.expect(not got["reached"], f"the host answers its workload: {got['reached']}")
        answers = [f for f in capture.result["frames"] if f[12:24] in {frames.mac_bytes(m).hex() for m in macs}]
        story.expect(not answers, f"frames from the host's own devices: {answers[:1]}")
    finally:
        from tealnet.lab.host import stop

        stop(server)
    return f"{len(targets) + len(local)} addresses tried by ARP, UDP and TCP: no answer, no frame from the host"


def _serve_argv() -> list[str]:
    import sys

    from tealnet.lab.host import python_env

    env = [f"{key}={value}" for key, value in python_env().items()]
    # Standard input of a popen is /dev/null: hold it open with a pipe that never ends by itself.
    code = (
        "import os, runpy, sys; os.dup2(os.pipe()[0], 0); sys.argv = ['probe', 'serve', '7001']; "
        "runpy.run_module('tealnet.probe', run_name='__main__')"
    )
    return ["env", *env, sys.executable, "-c", code]


def probes(story: Story) -> str:
    """`arping -D` for the own address gets no answer; IPv6 duplicate address detection finds no duplicate."""
    me = story.workload("acme/web-1")
    probe = me.host.run_in_netns(me.netns, ["arping", "-D", "-c", "2", "-w", "2", "-I", "eth0", me.v4])
    story.expect("Received 0 response" in probe.stdout, f"somebody answered for {me.v4}: {probe.stdout.strip()}")
    address = f"{me.v6}/64"
    script = f"ip address del {address} dev eth0; ip address add {address} dev eth0 && ip -o -6 address show dev eth0"
    me.host.run_in_netns(me.netns, ["sh", "-c", script])
    shown = ""
    for _ in range(40):
        shown = me.host.run_in_netns(me.netns, ["ip", "-o", "-6", "address", "show", "dev", "eth0"]).stdout
        line = next((x for x in shown.splitlines() if f" {me.v6}/" in x), "tentative")
        if "tentative" not in line:
            break
        me.host.run_in_netns(me.netns, ["sleep", "0.1"])
    story.expect("dadfailed" not in shown and "tentative" not in line, f"duplicate address detection: {line}")
    return "arping -D: 0 responses; IPv6 duplicate address detection: no duplicate"
