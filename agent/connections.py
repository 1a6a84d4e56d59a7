"""Connections as conntrack tells them, and what becomes of them from look to look.

One line each (ovs-dpctl(8), dump-conntrack):

    tcp,orig=(src=10.3.0.10,dst=10.1.0.7,sport=4000,dport=80),reply=(…),zone=10,mark=257,protoinfo=(state=ESTABLISHED)
"""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

Address = IPv4Address | IPv6Address

# What can be forgotten one by one, with its number: see `flush_connection` in agent/openflow/message.py.
FLUSHED = {"tcp": 6, "udp": 17}
# Of TCP in conntrack: asked, not taken yet; and taken.
OPENING = frozenset({"SYN_SENT", "SYN_SENT2", "SYN_RECV"})
OPEN = frozenset({"ESTABLISHED", "CLOSE_WAIT"})

_LINE = re.compile(
    r"^(?P<protocol>\w+),orig=\(src=(?P<source>[^,]+),dst=(?P<target>[^,)]+)(?P<ends>[^)]*)\)(?P<rest>.*)$",
    re.MULTILINE,
)
_NUMBER = re.compile(r"\b(sport|dport|id|type|code|zone|mark)=(\d+)")
_LABEL = re.compile(r"\blabels=0x([0-9a-f]+)")
_STATE = re.compile(r"\bstate=(\w+)")


class Connection(NamedTuple):
    """A connection in one zone, from the side that opened it. `ports`: of an echo its id, and type × 256 + code.

    `mark` and `label` are what agent/conntrack.py has written down.
    """

    protocol: str  # "tcp", "udp", "icmp", …
    source: Address
    target: Address
    ports: tuple[int, int]
    zone: int
    mark: int
    state: str  # of TCP, else ""
    label: int = 0


def parse(dump: str) -> list[Connection]:
    """The connections of a dump; lines of other forms are left out."""
    return [_connection(found) for found in _LINE.finditer(dump)]


def _connection(found: re.Match[str]) -> Connection:
    ends = dict(_NUMBER.findall(found["ends"]))
    _, _, after = found["rest"].partition("reply=(")
    rest = after.partition(")")[2]
    numbers, state, label = dict(_NUMBER.findall(rest)), _STATE.search(rest), _LABEL.search(rest)
    if "id" in ends:
        ports = int(ends["id"]), int(ends.get("type", 0)) << 8 | int(ends.get("code", 0))
    else:
        ports = int(ends.get("sport", 0)), int(ends.get("dport", 0))
    return Connection(
        protocol=found["protocol"],
        source=ip_address(found["source"]),
        target=ip_address(found["target"]),
        ports=ports,
        zone=int(numbers.get("zone", 0)),
        mark=int(numbers.get("mark", 0)),
        state=state[1] if state else "",
        label=int(label[1], 16) if label else 0,
    )


def as_v6(address: Address) -> int:
    """The number of a v6 address; v4 as v4-mapped v6 (RFC 4291, 2.5.5.2)."""
    return int(address) | 0xFFFF << 32 if address.version == 4 else int(address)
