"""The MTU of a network: packets of that size pass everywhere, larger ones nowhere, whoever sends them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

import pytest

from tealnet.lab.host import stop
from tealnet.lab.traffic import Workload
from tealnet.lab.wait import wait_for
from tealnet.probe.frames import udp_frame
from tests.lab.stand import ACTIVE, DEVICE, NETNS, SOON, Stand, standing

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]
MTU = 1430
# A virtual machine in few words: opens its tap, sends the frames that it is given, again and again. What is too large
# comes last: it takes what is behind it in a batch of vswitchd with it (ADR 0010).
VM = """
import fcntl, os, struct, sys, time
tap = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tap, 0x400454ca, struct.pack("16sH22x", b"tap0", 0x1002))  # TUNSETIFF: IFF_TAP | IFF_NO_PI
while True:
    for frame in sys.argv[1:]:
        os.write(tap, bytes.fromhex(frame))
    time.sleep(0.02)
"""
TIMES = 10  # frames of each size that came, before it is said of the others that they did not


@pytest.fixture(scope="module")
def module_stand() -> Iterator[Stand]:
    with standing("t-mtu", hosts=2) as stand:
        stand.settings("h1", allow_device=["tap*"])
        yield stand


@pytest.fixture
def stand(module_stand: Stand) -> Iterator[Stand]:
    module_stand.tenant("acme", NETNS, DEVICE)
    module_stand.network("acme/web", "10.1.0.0/24", "fd01::/64")
    for name, host in (("near", "h1"), ("same", "h1"), ("far", "h2")):
        module_stand.port(f"acme/{name}", "web", host)
    module_stand.sync()
    yield module_stand
    module_stand.clean()


def passes(source: Workload, target: str, size: int) -> bool:
    """Whether an IP packet of this size, not to be fragmented, is answered."""
    head = 48 if ":" in target else 28
    words = ["ping", "-n", "-c1", "-W0.5", "-M", "do", "-s", str(size - head), target]
    return source.host.run_in_netns(source.netns, words).returncode == 0


def datagrams(workload: Workload) -> int:
    """UDP datagrams that came for nobody."""
    text = workload.host.run_in_netns(workload.netns, ["cat", "/proc/net/snmp"]).stdout
    names, numbers = (line.split()[1:] for line in text.splitlines() if line.startswith("Udp:"))
    return dict(zip(names, map(int, numbers), strict=True))["NoPorts"]


def dropped(stand: Stand, name: str) -> int:
    """Frames of a workload that its host's end of the wire has not taken."""
    host, device = stand.workload(name).host, stand.state(name).device
    (found,) = json.loads(host.output(["ip", "-j", "-s", "link", "show", device]))
    return int(found["stats64"]["rx"]["dropped"])


def test_packets_of_that_size_pass(stand: Stand) -> None:
    near, same, far = stand.workloads("acme/near", "acme/same", "acme/far")
    for target in (*far.addresses, *same.addresses):
        assert passes(near, target, MTU), target
        assert not passes(near, target, MTU + 1), target
    # Larger ones in fragments: the workload makes them itself.
    for target in far.addresses:
        done = near.host.run_in_netns(near.netns, ["ping", "-n", "-c1", "-W1", "-s", "4000", target])
        assert done.returncode == 0, done.stdout


def test_a_workload_that_raises_its_own_gets_nothing_larger_through(stand: Stand) -> None:
    """With its agent standing still: nobody puts the interface right meanwhile."""
    near, same, far = stand.workloads("acme/near", "acme/same", "acme/far")
    stand.lab.stop("h1", "agent")
    try:
        near.host.run_in_netns(near.netns, ["ip", "link", "set", "eth0", "mtu", "1500"])
        before = dropped(stand, "acme/near")
        for target in (*far.addresses, *same.addresses):
            assert not passes(near, target, 1500), target
            assert passes(near, target, MTU), target
        assert dropped(stand, "acme/near") == before + 4
    finally:
        stand.lab.cont("h1", "agent")
    # And once the agent is at work again it is as it was.
    wait_for(
        lambda: "mtu 1430" in near.host.run_in_netns(near.netns, ["ip", "link", "show", "eth0"]).stdout,
        seconds=SOON,
        what="the interface has the network's MTU",
    )


def test_a_virtual_machine_gets_nothing_larger_through(stand: Stand) -> None:
    host, (near, far) = stand.lab.host("h1"), stand.workloads("acme/near", "acme/far")
    host.output(["ip", "tuntap", "add", "tap0", "mode", "tap"])
    try:
        vm = stand.port("acme/vm", "web", "h1", attachment={"kind": DEVICE, "device": "tap0"})
        stand.becomes("acme/vm", ACTIVE)
        source = next(a for a in vm.addresses if "." in a)
        frames = [
            udp_frame(
                src_mac=vm.mac, dst_mac=far.mac, src=source, dst=far.v4, data=mark.encode().ljust(size - 28, b".")
            )
            for mark, size in (("small", 1000), ("full", MTU), ("too large", MTU + 1), ("far too large", 1500))
        ]
        with far.running("sniff", "eth0") as seen:
            before = datagrams(far)
            process = host.popen([sys.executable, "-c", VM, *(frame.hex() for frame in frames)])
            try:  # opening the device changes a link, which may cost frames to another host (stand.LINKS)
                wait_for(lambda: datagrams(far) >= before + 2 * TIMES, seconds=SOON, what="frames that came")
            finally:
                stop(process)
            near.ping(far.v4, count=5)  # goes the same way, and comes later
        marks = [bytes.fromhex(frame)[42:60].partition(b".")[0] for frame in seen.result["frames"]]
        sent = (b"small", b"full", b"too large", b"far too large")
        assert {mark for mark in marks if mark in sent} == {b"small", b"full"}
    finally:
        stand.delete("acme/vm")
        stand.sync()
        host.output(["ip", "link", "delete", "tap0"])
