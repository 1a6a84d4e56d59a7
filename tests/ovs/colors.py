"""The world of the tests of colors: a routing domain of host a with twins, a shared network, and weights.

ops (no colors)   ops1, ops2 on a · ops3 on b
web (blue, green) web5 on a in both colors · web7: blue on b, green on c
db  (blue, green) db5: blue on b, green on c
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

from tealnet.core.rows.colors import Affinity, ColorWeight, Weights
from tealnet.core.rows.stream import Endpoint, Segment, Subnet
from tests.ovs.sandbox import Sandbox
from tests.ovs.wire import Wire

A, B, C = (f"{n:032x}" for n in (1, 2, 3))
DOMAIN = 0x1000
BLUE, GREEN = 1, 2
OPS, WEB_BLUE, WEB_GREEN, DB_BLUE, DB_GREEN = 1000, 1001, 1002, 1011, 1012
WEB, DB = 11, 12  # network numbers
WEB_UID, DB_UID = f"{WEB:032x}", f"{DB:032x}"


def _segment(vni: int, color: int, number: int) -> Segment:
    subnets = tuple(
        Subnet(prefix, prefix[1]) for prefix in map(ip_network, (f"10.{number}.0.0/24", f"fd{number}::/64"))
    )
    return Segment(vni, DOMAIN, color, number, 1430, subnets, base=color == BLUE)


SEGMENTS = (
    _segment(OPS, 0, 30),
    _segment(WEB_BLUE, BLUE, WEB),
    _segment(WEB_GREEN, GREEN, WEB),
    _segment(DB_BLUE, BLUE, DB),
    _segment(DB_GREEN, GREEN, DB),
)


def endpoint(number: int, *, vni: int, last: int, host: str, identity: int) -> Endpoint:
    """A port; the MAC is that of its address, so twins share it."""
    net = next(segment.network_number for segment in SEGMENTS if segment.vni == vni)
    addresses = ip_address(f"10.{net}.0.{last}"), ip_address(f"fd{net}::{last}")
    return Endpoint(f"{number:032x}", vni, addresses, f"02:00:00:00:{net:02x}:{last:02x}", host, "", identity, ())


OPS1 = endpoint(101, vni=OPS, last=10, host=A, identity=300)
OPS2 = endpoint(102, vni=OPS, last=11, host=A, identity=300)
OPS3 = endpoint(103, vni=OPS, last=20, host=B, identity=300)
BLUE5 = endpoint(111, vni=WEB_BLUE, last=5, host=A, identity=400)
GREEN5 = endpoint(112, vni=WEB_GREEN, last=5, host=A, identity=500)
BLUE7 = endpoint(113, vni=WEB_BLUE, last=7, host=B, identity=400)
GREEN7 = endpoint(114, vni=WEB_GREEN, last=7, host=C, identity=500)
DB_BLUE5 = endpoint(121, vni=DB_BLUE, last=5, host=B, identity=400)
DB_GREEN5 = endpoint(122, vni=DB_GREEN, last=5, host=C, identity=500)
ENDPOINTS = (OPS1, OPS2, OPS3, BLUE5, GREEN5, BLUE7, GREEN7, DB_BLUE5, DB_GREEN5)
LOCAL = {"ops1": (10, OPS1), "ops2": (11, OPS2), "blue5": (12, BLUE5), "green5": (13, GREEN5)}
ZONE = {name: ofport for name, (ofport, _) in LOCAL.items()}


def weights(
    network: int, blue: int, green: int, *, closed: Sequence[int] = (), affinity: Affinity = Affinity.CONNECTION
) -> Weights:
    """A split of web or db."""
    shares = ColorWeight(BLUE, blue), ColorWeight(GREEN, green)
    return Weights(f"{network:032x}", DOMAIN, network, shares, 1, affinity, tuple(closed), 0)


class ColorWire(Wire):
    """Host a with all of it, all weight on blue; `split` changes the weights of a network."""

    def __init__(self, ovs: Sandbox, *, local: Iterable[str] = tuple(LOCAL)) -> None:
        super().__init__(ovs, uid=A, others={B: 2, C: 3})
        self.put(segments=SEGMENTS, endpoints=ENDPOINTS)
        for name in local:
            ofport, row = LOCAL[name]
            self.plug_wire(row, name=name, ofport=ofport)
        self.reset()

    def reset(self) -> None:
        """Everything as at first, no connections."""
        self.inputs.segments.replace_all(_ROWS)
        for network in (WEB, DB):
            self.inputs.weights.put(f"{network:032x}", weights(network, 100, 0))
        self.load()
        self.forget()

    def split(self, network: int, blue: int, green: int, *, closed: Sequence[int] = ()) -> None:
        """New weights, in force when this returns."""
        self.inputs.weights.put(f"{network:032x}", weights(network, blue, green, closed=closed))
        self.load()

    def recolor(self, colors: dict[int, int]) -> None:
        """The segments that there are from now on: VNI → color. Shared networks stay; weights go with the colors."""
        rows = {vni: replace(row, color=colors.get(vni, 0)) for vni, row in _ROWS.items() if vni in {OPS, *colors}}
        self.inputs.segments.replace_all(rows)
        self.load()


_ROWS = {segment.vni: segment for segment in SEGMENTS}
