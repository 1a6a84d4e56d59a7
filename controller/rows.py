"""Rows of the controller's tables: intents and what is written about them, parsed once at the edge of the store.

A row is for reading only. Nothing is ever encoded from a row back into etcd: an update edits the stored message, so
that fields this build does not know survive. `Intent` keeps the stored bytes and revisions for that; `spec` is what
checks and derived tables read.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Generic, NamedTuple, TypeVar

from tealnet.core.rows.colors import Affinity

Address = IPv4Address | IPv6Address
Prefix = IPv4Network | IPv6Network
Labels = tuple[tuple[str, str], ...]  # sorted


class Attach(Enum):
    """How a port is attached."""

    NETNS = "NETNS"
    NETNS_PATH = "NETNS_PATH"
    DEVICE = "DEVICE"


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """Owner and isolation boundary. Quotas: 0 = default."""

    host_selector: Labels
    kinds: tuple[Attach, ...]
    max_networks: int
    max_routers: int
    max_ports: int
    max_rollouts: int
    deleting: bool
    revoked_before: float  # Unix time; 0 = never
    max_groups: int = 0  # beside the default one


@dataclass(frozen=True, slots=True)
class Segment:
    """The realisation of a network in one color; color number 0 = none."""

    color: str
    uid: str
    vni: int
    color_number: int
    was_base: bool = False  # what has no color yet belongs to this one


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A subnet set. `gateways` has one address per CIDR, in the order of `cidrs`."""

    tenant: str  # "tenants/acme"
    cidrs: tuple[Prefix, ...]
    gateways: tuple[Address, ...]
    reserved: tuple[tuple[Address, Address], ...]  # inclusive ranges
    router: str  # resource name or ""
    mtu: int
    number: int
    own_domain: int
    segments: tuple[Segment, ...]
    quarantine: int  # seconds
    guarded: bool = False  # policy ENFORCE

    @property
    def colors(self) -> tuple[str, ...]:
        """Names of its colors, in the user's order; none: one segment without a color."""
        return tuple(segment.color for segment in self.segments if segment.color_number)

    def color_of(self, segment_uid: str) -> str:
        """The color of one of its segments; "" where it has none."""
        return next((s.color for s in self.segments if s.uid == segment_uid and s.color_number), "")


class OnOpen(Enum):
    """What becomes of open connections to colors that have no weight."""

    KEEP = "KEEP"
    DRAIN = "DRAIN"
    CUT = "CUT"


class Drain(NamedTuple):
    """A color without weight whose open connections are to be cut, `seconds` after a leader has first seen it."""

    color: str
    seconds: float
    since: float  # Unix time


@dataclass(frozen=True, slots=True)
class SplitSpec:
    """The weights of a network's colors, by name. What has no weight does not stand in `weights`."""

    tenant: str
    network: str
    network_uid: str
    weights: tuple[tuple[str, int], ...]  # sorted; each above 0
    affinity: Affinity
    closed: tuple[str, ...]  # sorted; colors without weight
    drains: tuple[Drain, ...]  # colors without weight that are not closed yet
    apply_at: int  # Unix time in ns; 0 = at once


@dataclass(frozen=True, slots=True)
class StaticRoute:
    """Inside a router's domain."""

    prefix: Prefix
    next_hop: Address


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """A routing domain."""

    tenant: str
    domain: int
    routes: tuple[StaticRoute, ...]


@dataclass(frozen=True, slots=True)
class PortSpec:
    """An attachment. `where`: namespace within the tenant, path, or device."""

    tenant: str
    network: str
    segment_uid: str
    host: str  # "hosts/h1" or "" (unbound)
    kind: Attach
    where: str
    interface: str
    addresses: tuple[Address, ...]
    mac: str
    allowed: tuple[Prefix, ...]
    identity: int
    groups: tuple[str, ...] = ()  # resource names; none: the tenant's default group


@dataclass(frozen=True, slots=True)
class HostSpec:
    """A machine with an agent; vtep None until set or pinned."""

    vtep: Address | None
    number: int
    drained: bool
    fenced: bool
    revoked_before: float


Spec = TypeVar("Spec")


@dataclass(frozen=True, slots=True)
class Intent(Generic[Spec]):
    """One object in etcd. `message` is the API message's bytes as stored, `stored` the whole value."""

    name: str
    uid: str
    labels: Labels
    spec: Spec
    stored: bytes
    create_revision: int
    mod_revision: int
    slot: int = 0  # of the tenant's quota


@dataclass(frozen=True, slots=True)
class TombstoneRow:
    """Proof of removal; key (host uid, port uid), or with the address's hex as third part: quarantine only."""

    host_uid: str
    port_uid: str
    address: str
    port_name: str
    reason: str
    moved_to: str
    network_uid: str
    address_keys: tuple[str, ...]
    quarantine: int
    acked: bool
    revision: int  # of its creation: the proof
    due: bool = False  # of a move: the old host's LocalPort is to go now
    since: float = 0.0  # Unix time
    domain: int = 0  # that the port was in


@dataclass(frozen=True, slots=True)
class IdentityRow:
    """An issued identity number: of a tenant's uid and, sorted, the uids of security groups."""

    members: tuple[str, ...]
    create_revision: int

    @property
    def groups(self) -> tuple[str, ...]:
        """Uids of its groups; the tenant's uid stands for its default group where a port of old names none."""
        return self.members[1:] or self.members


@dataclass(frozen=True, slots=True)
class PortStatusEntry:
    """What the port's host said last, transitions only."""

    host_uid: str
    applied: bytes
    tried: bytes
    reason: str
    text: str
    since: float
    policy: str = ""  # why its rules could not be applied as they are
    device: str = ""  # on the host; "": the one that is called after the port


@dataclass(frozen=True, slots=True)
class SessionEntry:
    """A live session of a host."""

    replica: str
    session: str
    instance_uid: str


@dataclass(frozen=True, slots=True)
class Term:
    """The elected replica; create_revision is what chores' writes compare."""

    replica: str
    create_revision: int
