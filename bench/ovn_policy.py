"""OVN's way of the same: a port group on ten hosts, whose rule refers to an address set of a thousand addresses.

The addresses are those of logical ports that are bound nowhere: that is less than what bound ones cost OVN.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bench.common import BenchError
from bench.ovn import Central, chassis
from bench.ovn_packages import Ovn
from bench.ovsdb import Op
from tealnet.lab import Host, Lab, LabError
from tealnet.lab.wait import wait_for

_SWITCH = "ls0"
_BATCH = 500  # ports of one call of ovn-nbctl
ALLOW, DENY = "1002", "1000"  # priorities


def guard(central: Central, ports: Sequence[str], *, allow: Sequence[str]) -> None:
    """These logical ports in a group: what it does not allow is denied; allow-related is stateful."""
    uuids = [central.north.uuid("Logical_Switch_Port", name)[1] for name in ports]
    central.ctl("nb", "--", "create", "port_group", "name=pg0", f"ports={','.join(uuids)}")
    rules = [("from-lport", "inport==@pg0 && ip", "drop"), ("to-lport", "outport==@pg0 && ip", "drop")]
    words: list[str] = []
    for way, match, verdict in rules:
        words += ["--", "--type=port-group", "acl-add", "pg0", way, DENY, match, verdict]
    words += ["--", "--type=port-group", "acl-add", "pg0", "from-lport", ALLOW, "inport==@pg0 && ip4", "allow-related"]
    for match in allow:
        words += ["--", "--type=port-group", "acl-add", "pg0", "to-lport", ALLOW, match, "allow-related"]
    central.ctl("nb", *words)


class Scale:
    """Ten hosts with a port each, in one group; `set_addresses` says who may talk to them, of twice so many ports."""

    def __init__(self, lab: Lab, ovn: Ovn, *, hosts: int, members: int) -> None:
        self.central = Central(lab, ovn)
        self.hosts = [chassis(lab, self.central, f"o{number}") for number in range(1, hosts + 1)]
        self.central.wait_chassis(self.hosts)
        self.central.ctl("nb", "ls-add", _SWITCH)
        names = [f"local-{host.name}" for host in self.hosts]
        words: list[str] = []
        for number, name in enumerate(names, 1):
            words += ["--", "lsp-add", _SWITCH, name]
            words += ["--", "lsp-set-addresses", name, f"0a:00:0a:61:00:{number:02x} 10.97.0.{number}"]
        self.central.ctl("nb", *words[1:])
        for host, name in zip(self.hosts, names, strict=True):
            ids = ["--", "set", "Interface", "local", "type=internal", f"external_ids:iface-id={name}"]
            host.output(["ovs-vsctl", "--timeout=60", "add-port", "br-int", "local", *ids])
        for start in range(0, 2 * members, _BATCH):
            words = []
            for number in range(start, min(2 * members, start + _BATCH)):
                ends = f"0a:00:ac:{number >> 16:02x}:{number >> 8 & 255:02x}:{number & 255:02x} {_address(number)}"
                words += ["--", "lsp-add", _SWITCH, f"m{number}", "--", "lsp-set-addresses", f"m{number}", ends]
            self.central.ctl("nb", *words[1:])
        self.central.ctl("nb", "create", "address_set", "name=as0")
        self._set = self.central.north.uuid("Address_Set", "as0")
        guard(self.central, names, allow=())
        self.synced()
        wait_for(lambda: "up" in self._states(names), seconds=60, what="OVN's ports are up")
        self._rules = 0

    def _states(self, names: Sequence[str]) -> str:
        rows = [self.central.north.select("Logical_Switch_Port", ["up"], name=name)[0]["up"] for name in names]
        return "up" if all(row is True for row in rows) else "down"

    def close(self) -> None:
        """Connections only; the lab's end takes the rest."""
        self.central.north.close()

    # -- changes, each until all hosts have it

    def set_addresses(self, first: int, count: int) -> None:
        """Exactly those of so many ports from the first on."""
        addresses = [_address(number) for number in range(first, first + count)]
        self._change({"op": "update", "row": {"addresses": ["set", addresses]}})

    def add_address(self, number: int) -> None:
        """One more port's."""
        self._change({"op": "mutate", "mutations": [["addresses", "insert", _address(number)]]})

    def rule(self) -> None:
        """One more that refers to the set, with a port of its own."""
        self._rules += 1
        match = f"outport==@pg0 && ip4.src==$as0 && tcp.dst=={1000 + self._rules}"
        more = ["--type=port-group", "acl-add", "pg0", "to-lport", ALLOW, match, "allow-related"]
        self.central.ctl("nb", "--wait=hv", *more)

    def _change(self, op: Op) -> None:
        where = [["_uuid", "==", self._set]]
        self.central.north.transact({"table": "Address_Set", "where": where, **op})
        self.synced()

    def synced(self) -> None:
        """All hosts have it. Raises BenchError."""
        try:
            self.central.ctl("nb", "--wait=hv", "sync")
        except LabError as error:
            raise BenchError(f"OVN: {error}") from None

    def measure(self, change: Callable[[], None]) -> float:
        """Milliseconds."""
        started = time.monotonic()
        change()
        return 1000 * (time.monotonic() - started)

    def flows(self) -> int:
        """Of the host that has most."""
        return max(map(count_flows, self.hosts))


def _address(number: int) -> str:
    """Of a member."""
    return f"10.98.{number // 250}.{1 + number % 250}"


def count_flows(host: Host) -> int:
    """How many flows its integration bridge has."""
    text = host.output(["ovs-ofctl", "-O", "OpenFlow15", "dump-aggregate", "br-int"])
    return int(text.split("flow_count=")[1].split()[0])
