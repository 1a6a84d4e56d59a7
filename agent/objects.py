"""Device objects: what this agent can want on its host, one frozen row per thing, by layer.

    netns → link → guard → ovsdb → address → zone → flow        create left to right, delete right to left

A value holds all that its driver compares, so "equal" means "nothing to do". Every object is made recognisable as
ours by a process without memory (the `Marks` below); nothing without such a mark is ever read back, changed or
deleted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class Marks:
    """How our objects are recognised on a host."""

    DEVICE_PREFIX = "tn"  # host-side devices: tn + 12 hex
    # ifalias of host-side devices (… <tenant>/<port uid>), and of `lo` in namespaces that we made (… <name>)
    ALIAS_PREFIX = "tealnet:"
    POOL = "pool"  # stands for the port's uid on devices that were made before it was known whose they would be
    NFT_TABLE = "tealnet"  # the only table we own: `netdev tealnet`
    OVS_EXTERNAL_ID = "tealnet"  # external_ids key on Bridge and Port/Interface rows


class NetnsKind(Enum):
    """Whose namespace it is."""

    OURS = "ours"  # /run/netns/<tenant>.<namespace>, made and deleted by us
    PATH = "path"  # somebody's; we only put an interface into it
    HOST = "host"  # no namespace: the device stays where it is (attachment DEVICE)


@dataclass(frozen=True, slots=True)
class NetnsRef:
    """Where an interface lives. `path` is /run/netns/<name> for OURS, the given path for PATH, "" for HOST."""

    kind: NetnsKind
    path: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """A workload namespace of ours. Layer netns, key: name (`<tenant>.<namespace>`)."""

    name: str
    flaw: str = ""  # only in what is read back, so that it differs: why it is not as it was written
    spare: str = field(default="", compare=False)  # the name of one that becomes it, if that is there


@dataclass(frozen=True, slots=True)
class Link:
    """A port's link. Layer link, key: host-side device name.

    NETNS and NETNS_PATH: a veth pair, host side `device`, workload side `interface` (with `mac`) inside `netns`.
    DEVICE: an existing device; only checked and given the MTU. Created down; the layer `guard` sets up `device`
    (with datapath "system", which has none, `address`), the layer `address` the other end.
    """

    device: str
    netns: NetnsRef
    interface: str
    mac: str  # of the workload side, lower-case colons; "" for DEVICE
    mtu: int
    port_uid: str
    tenant: str = ""  # a namespace has interfaces of one tenant only
    flaw: str = ""  # as in Namespace
    spare: NetnsRef | None = field(default=None, compare=False)  # where it was made, if that was before its port came

    def is_made_anew(self, there: Link | None) -> bool:
        """Whether what is there (None: nothing) can't be mended to be this, but has to be replaced."""
        if there is None or there.netns not in (self.netns, self.spare):
            return True
        return there.netns.kind is not NetnsKind.HOST and not there.mac


@dataclass(frozen=True, slots=True)
class Guard:
    """The kernel's own stack never sees frames of this host-side device (netdev datapath only). Layer guard."""

    device: str
    flaw: str = ""  # as in Namespace


@dataclass(frozen=True, slots=True)
class Bridge:
    """An OVS bridge of ours. Layer ovsdb, key: ("bridge", name)."""

    name: str
    datapath_type: str  # "netdev" or "system"


@dataclass(frozen=True, slots=True)
class OvsPort:
    """A port of the integration bridge. Layer ovsdb, key: ("port", device)."""

    bridge: str
    device: str
    ofport: int  # requested, recorded in external_ids and read back; also the ct zone
    port_uid: str


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The one VXLAN port: remote_ip=flow, key=flow. Layer ovsdb, key: ("port", name)."""

    bridge: str
    name: str
    ofport: int
    local_ip: str
    udp_port: int = 4789


@dataclass(frozen=True, slots=True)
class Route:
    """A route inside a workload namespace; `gateway` "" = on link."""

    prefix: str
    gateway: str


@dataclass(frozen=True, slots=True)
class Addressing:
    """A link's addresses and routes, and both its ends up. Layer address, key: host-side device name."""

    device: str
    netns: NetnsRef
    interface: str
    addresses: tuple[str, ...] = ()  # "10.0.0.5/24", sorted
    routes: tuple[Route, ...] = field(default=())  # sorted by prefix
    flaw: str = ""  # as in Namespace


@dataclass(frozen=True, slots=True)
class Zone:
    """A conntrack zone: a port's, with its ofport as its number. Layer zone, key: the number."""

    number: int
    limit: int  # connections; what comes after that many passes, but is not remembered
    udp_timeout: int = 0  # seconds of silence after which UDP is forgotten; 0: as Open vSwitch has it
