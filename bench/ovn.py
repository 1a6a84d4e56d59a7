"""OVN on hosts of the same lab, as an expert sets it up: no inactivity probes, kept connections, one transaction.

`central` is a machine with both databases and northd; each host runs ovn-controller beside its Open vSwitch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from bench import plug
from bench.common import BenchError, say
from bench.inside import Inside
from bench.ovn_packages import Ovn
from bench.ovsdb import Op, Ovsdb, Switch
from bench.plug import Plug, Way
from bench.prober import Prober, close_all, probe_all
from tealnet.lab import Host, Lab, LabError, Parts
from tealnet.lab.wait import wait_for

_RUN = "/run/ovn"
_LOG = "/var/log/openvswitch"
_SWITCH = "ls0"
_DATABASES = {"nb": "OVN_Northbound", "sb": "OVN_Southbound"}


@dataclass(frozen=True, slots=True)
class Attached:
    """One attachment. Times in ms from the start: northbound commit, card ready, port committed, first ping."""

    intent: float
    card: float
    port: float
    total: float


@dataclass(frozen=True, slots=True)
class Bulk:
    """Many at once. Seconds from the start: northbound commit, ports committed, cards ready, last first ping."""

    intent: float
    ports: float
    cards: float
    total: float


class Central:
    """Databases and northd on a machine without a switch."""

    def __init__(self, lab: Lab, ovn: Ovn) -> None:
        self.ovn, self.machine = ovn, lab.add_host("central", parts=Parts.BARE)
        self.env = {"OVN_RUNDIR": _RUN, "OVS_RUNDIR": _RUN, "OVN_LOGDIR": _LOG, "OVS_LOGDIR": _LOG}
        self.machine.output(["mkdir", "-p", _RUN])
        for name in _DATABASES:
            self._database(name)
        stores = [f"--ovnnb-db=unix:{_RUN}/nb.sock", f"--ovnsb-db=unix:{_RUN}/sb.sock"]
        self._spawn("ovn-northd", [self.ovn.program("ovn-northd"), *stores])
        self.ctl("nb", "init", "--", "set", "NB_Global", ".", "options:northd_probe_interval=0")
        probe = ["--", "set", "connection", ".", "inactivity_probe=0"]
        self.ctl("sb", "init", "--", "set-connection", "ptcp:6642:0.0.0.0", *probe)
        self.north = Ovsdb(self.machine, f"{_RUN}/nb.sock", _DATABASES["nb"])

    @property
    def remote(self) -> str:
        """Where hosts reach the southbound database."""
        return f"tcp:{self.machine.management}:6642"

    def ctl(self, which: str, *words: str) -> str:
        """ovn-nbctl or ovn-sbctl."""
        program = self.ovn.program(f"ovn-{which}ctl")
        return self.machine.output([program, "--timeout=60", f"--db=unix:{_RUN}/{which}.sock", *words], seconds=70)

    def wait_chassis(self, hosts: Sequence[Host]) -> None:
        """All of these are known."""
        south = Ovsdb(self.machine, f"{_RUN}/sb.sock", _DATABASES["sb"])
        names = {host.name for host in hosts}
        wait_for(
            lambda: names <= {row["name"] for row in south.select("Chassis", ["name"])}, seconds=30, what="chassis"
        )
        south.close()

    def _database(self, name: str) -> None:
        file, schema = f"/var/lib/tealnet/{name}.db", self.ovn.schemas / f"ovn-{name}.ovsschema"
        self.machine.output(["ovsdb-tool", "create", file, str(schema)])
        # Its TCP remote comes from the database, so that the inactivity probe can be switched off: by default the
        # server drops each ovn-controller that is busy for 5 s.
        remote = f"db:{_DATABASES[name]},{name.upper()}_Global,connections"
        argv = ["ovsdb-server", file, f"--remote=punix:{_RUN}/{name}.sock", f"--remote={remote}"]
        self._spawn(name, [*argv, f"--unixctl={_RUN}/{name}.ctl"])
        wait_for(lambda: self.machine.run(["test", "-S", f"{_RUN}/{name}.sock"]).returncode == 0, seconds=10, what=name)

    def _spawn(self, name: str, argv: list[str]) -> None:
        options = [f"--pidfile={_RUN}/{name}.pid", f"--log-file={_LOG}/{name}.log", "-vconsole:off"]
        self.machine.spawn(name, [*argv, *options], log=f"{_LOG}/{name}.out", env=self.env)


def chassis(lab: Lab, central: Central, name: str) -> Host:
    """One more host of the lab, with Open vSwitch and ovn-controller."""
    host = lab.add_host(name, parts=Parts.SWITCH, switch_env={} if central.ovn.as_packaged else None)
    ids = {
        "ovn-remote": central.remote,
        "ovn-encap-type": "geneve",
        "ovn-encap-ip": host.vtep,
        "ovn-remote-probe-interval": "0",
        "ovn-openflow-probe-interval": "0",
    }
    words = [f'external_ids:{key}="{value}"' for key, value in ids.items()]
    bridge = ["--", "add-br", "br-int", "--", "set", "Bridge", "br-int", "datapath_type=netdev", "fail_mode=secure"]
    host.output(["ovs-vsctl", "--timeout=60", "set", "Open_vSwitch", ".", *words, *bridge])
    host.output(["mkdir", "-p", _RUN])
    env = {"OVN_RUNDIR": _RUN, "OVS_RUNDIR": "/run/openvswitch", "OVN_LOGDIR": _LOG, "OVS_LOGDIR": _LOG}
    argv = [central.ovn.program("ovn-controller"), "unix:/run/openvswitch/db.sock", f"--pidfile={_RUN}/controller.pid"]
    options = [f"--log-file={_LOG}/ovn-controller.log", "-vconsole:off"]
    host.spawn("ovn-controller", [*argv, *options], log=f"{_LOG}/ovn-controller.out", env=env)
    return host


class Cloud:
    """OVN with one logical switch over two hosts, and a reference workload on each."""

    def __init__(self, lab: Lab, ovn: Ovn) -> None:
        self.central = Central(lab, ovn)
        self.hosts = [chassis(lab, self.central, name) for name in ("o1", "o2")]
        self._wait_chassis()
        self.insides = [Inside(host) for host in self.hosts]
        self.switches = [Switch(host, "br-int") for host in self.hosts]
        self.central.ctl("nb", "ls-add", _SWITCH)
        self.logical = self.central.north.uuid("Logical_Switch", _SWITCH)
        self._serial = self.count = 0
        self.references = [self._plug(number) for number in (0, 1)]
        self.bulk(self.references)

    def _wait_chassis(self) -> None:
        self.central.wait_chassis(self.hosts)
        for host, other in (self.hosts, self.hosts[::-1]):  # tunnels find their neighbour before the first packet
            if host.run(["ping", "-c", "3", "-i", "0.1", "-W", "1", other.vtep]).returncode:
                raise BenchError(f"{host.name} does not reach {other.name} on the underlay")

    # -- ports

    def fill(self, count: int) -> float:
        """Grow to so many workloads, alternating between the hosts; returns the seconds it took."""
        started = time.monotonic()
        while self.count < count:
            self.bulk([self._plug(number) for number in range(min(200, count - self.count))], reach=False)
        self.settle()
        return time.monotonic() - started

    def settle(self) -> None:
        """Return when all hosts have all that was committed."""
        try:
            self.central.ctl("nb", "--wait=hv", "sync")
        except LabError as error:  # after a reconnect an acknowledgement may be lost: then this says nothing
            say("OVN: --wait=hv:", error)

    def attach(self, way: Way) -> Attached:
        """One workload on the first host, from nothing to the first ping, and away again."""
        one = self._plug(0)
        started = time.monotonic()
        self._intend([one])
        intended = time.monotonic()
        self.insides[0].do(lambda: plug.make([one], way))
        ready = time.monotonic()
        self.switches[0].add([(one.device, one.name)])
        committed = time.monotonic()
        prober = Prober.start(one.where, self.references[1].address).result()
        if prober is None or probe_all([prober]):
            raise BenchError("OVN's workload is not reached")
        prober.close()
        self.remove([one])
        times = (intended, ready, committed, prober.echo_at)
        return Attached(*((at - started) * 1000 for at in times))

    def bulk(self, plugs: Sequence[Plug], *, reach: bool = True) -> Bulk:
        """One northbound transaction, one per host; with `reach` until each has reached the other host."""
        started = time.monotonic()
        self._intend(plugs)
        intended = time.monotonic()
        self.count += len(plugs)
        ports = [self._start(number, plugs) for number in range(len(self.hosts))]
        committed = max(future.result() for future in ports)
        inner = [plug.inside.start(plug.inner) for plug in plugs]
        for done in inner:
            done.result()
        ready = time.monotonic()
        last = self._reach(plugs) if reach else ready
        times = (intended, committed, ready, last)
        return Bulk(*(at - started for at in times))

    def _start(self, number: int, plugs: Sequence[Plug]) -> Future[float]:
        inside, switch = self.insides[number], self.switches[number]
        mine = [one for one in plugs if one.inside is inside]

        def work() -> float:
            if mine:
                plug.make_outer(mine)
                switch.add([(one.device, one.name) for one in mine])
            return time.monotonic()

        return inside.start(work)

    def _reach(self, plugs: Sequence[Plug]) -> float:
        far = {self.insides[0]: self.references[1].address, self.insides[1]: self.references[0].address}
        futures = [Prober.start(one.where, far[one.inside]) for one in plugs]
        probers = [prober for future in futures if (prober := future.result()) is not None]
        missing = probe_all(probers, every=0.1, seconds=60)
        close_all(probers)
        if missing or len(probers) < len(plugs):
            raise BenchError(f"OVN: {len(missing)} of {len(plugs)} workloads are not reached")
        return max(prober.echo_at for prober in probers)

    def remove(self, plugs: Sequence[Plug]) -> None:
        """Away with them, until all hosts know."""
        for inside, switch in zip(self.insides, self.switches, strict=True):
            mine = [one for one in plugs if one.inside is inside]
            if mine:
                switch.remove([one.device for one in mine])
                inside.do(partial(plug.remove, mine))
        gone = [self.central.north.uuid("Logical_Switch_Port", one.name) for one in plugs]
        self.central.north.transact(self._mutate("delete", gone))
        for switch in self.switches:
            switch.caught_up()
        self.settle()

    def make_plugs(self, count: int) -> list[Plug]:
        """New workloads, alternating between the hosts."""
        return [self._plug(number) for number in range(count)]

    def _plug(self, number: int) -> Plug:
        self._serial += 1
        address = f"10.98.{self._serial // 250}.{1 + self._serial % 250}"
        return Plug(self.insides[number % 2], f"ov-{self._serial}", address)

    def _intend(self, plugs: Sequence[Plug]) -> None:
        ops: list[Op] = [
            {
                "op": "insert",
                "table": "Logical_Switch_Port",
                "uuid-name": f"p{number}",
                "row": {"name": one.name, "addresses": f"{one.mac} {one.address}"},
            }
            for number, one in enumerate(plugs)
        ]
        self.central.north.transact(*ops, self._mutate("insert", [["named-uuid", f"p{n}"] for n in range(len(plugs))]))

    def _mutate(self, how: str, ports: list[list[str]]) -> Op:
        where = [["_uuid", "==", self.logical]]
        return {
            "op": "mutate",
            "table": "Logical_Switch",
            "where": where,
            "mutations": [["ports", how, ["set", ports]]],
        }

    def close(self) -> None:
        """Connections and threads only; the lab's end takes the rest."""
        self.central.north.close()
        for switch in self.switches:
            switch.db.close()
        for inside in self.insides:
            inside.close()
