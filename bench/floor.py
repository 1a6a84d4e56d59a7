"""The floor: the same two vswitchds with no control plane. Whatever a control plane does comes on top of this.

A learning bridge `br-plain` with a static VXLAN port to the other host (for time to connectivity), or a bridge with two
flows per address and no learning (for the data plane).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import plug
from bench.common import BenchError
from bench.inside import Inside
from bench.ovsdb import Switch
from bench.plug import Plug, Way
from bench.prober import Prober, probe_all
from tealnet.lab import Host

BRIDGE = "br-plain"
UDP_PORT = 4799  # beside the tunnel that is there
VNI = 77


@dataclass(frozen=True, slots=True)
class Attached:
    """One attachment. Times in ms: until the card was ready, until the port was committed, until the first ping."""

    card: float
    port: float
    total: float


class Floor:
    """`br-plain` on two hosts."""

    def __init__(self, hosts: Sequence[Host], insides: Sequence[Inside]) -> None:
        self.hosts, self.insides = hosts, insides
        for host, other in (hosts, hosts[::-1]):
            tunnel = f"options:key={VNI} options:remote_ip={other.vtep}"
            host.output(["ovs-vsctl", "--timeout=60", *bridge_words(host, tunnel=tunnel, fail_mode="standalone")])
        self.switches = [Switch(host, BRIDGE) for host in hosts]
        self.reference = Plug(insides[1], "fl-ref", "10.99.255.1")
        self._serial = 0
        insides[1].do(lambda: plug.make([self.reference]))
        self.switches[1].add([(self.reference.device, "")])

    def attach(self, way: Way) -> Attached:
        """One workload on the first host, from nothing to the first ping, and away again."""
        self._serial += 1
        one = Plug(self.insides[0], f"fl-{self._serial}", f"10.99.{self._serial // 250}.{1 + self._serial % 250}")
        started = time.monotonic()
        self.insides[0].do(lambda: plug.make([one], way))
        ready = time.monotonic()
        self.switches[0].add([(one.device, "")])
        committed = time.monotonic()
        prober = Prober.start(one.where, self.reference.address).result()
        if prober is None or probe_all([prober]):
            raise BenchError("the floor's workload is not reached")
        prober.close()
        self.switches[0].remove([one.device])
        self.switches[0].caught_up()
        self.insides[0].do(lambda: plug.remove([one]))
        times = (ready, committed, prober.echo_at)
        return Attached(*((at - started) * 1000 for at in times))

    def close(self) -> None:
        """Connections only; the lab's end takes the rest."""
        for switch in self.switches:
            switch.db.close()


def bridge_words(host: Host, *, tunnel: str, fail_mode: str) -> list[str]:
    """Arguments of ovs-vsctl that make the bridge with its tunnel port `vx`."""
    text = (
        f"add-br {BRIDGE} -- set Bridge {BRIDGE} datapath_type=netdev fail_mode={fail_mode}"
        f" -- add-port {BRIDGE} vx -- set Interface vx type=vxlan options:dst_port={UDP_PORT}"
        f" options:local_ip={host.vtep} {tunnel}"
    )
    return text.split()
