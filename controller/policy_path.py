"""Would a connection be let through? Where it goes, and what the rules at both ends say. Reads tables only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from controller.features.security import Security
from controller.rows import Address, Intent, NetworkSpec, PortSpec
from controller.scopes import Scopes
from controller.verdict import Connection, Verdict, judge
from controller.world import World
from tealnet.core.rows.parse import BadResource
from tealnet.core.rows.security import ICMP, ICMPV6, Direction, Rules, rules_key
from tealnet.core.rows.stream import decode

_VERSION = {ICMP: 4, ICMPV6: 6}


@dataclass(frozen=True, slots=True)
class Probe:
    """The connection that is asked about. `color`: "" = whatever it gets."""

    source: Intent[PortSpec]
    target: Intent[PortSpec]
    protocol: int
    port: int
    icmp: tuple[int, int] | None  # None: an echo request
    color: str


@dataclass(frozen=True, slots=True)
class Side:
    """One end's word; `verdict` None: its network is not guarded."""

    identity: int
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Path:
    """One pair of addresses. `reason`: why nothing gets there whatever rules say, a stable word; text says it."""

    source: Address | None
    target: Address | None
    reason: str = ""
    text: str = ""
    egress: Side | None = None
    ingress: Side | None = None


class Paths:
    """Looks at the tables as they are now."""

    def __init__(self, world: World, scopes: Scopes, security: Security) -> None:
        self.world, self.scopes, self.security = world, scopes, security

    def paths(self, probe: Probe) -> Iterator[Path]:
        """One for each IP version that both ends have; at least one."""
        source, target = probe.source.spec.addresses, probe.target.spec.addresses
        found = False
        for version in (4, 6):
            pair = [next((a for a in end if a.version == version), None) for end in (source, target)]
            if pair[0] is None or pair[1] is None or _VERSION.get(probe.protocol, version) != version:
                continue
            found = True
            yield self._path(probe, pair[0], pair[1])
        if not found:
            family = f"IPv{_VERSION[probe.protocol]}" if probe.protocol in _VERSION else "the same family"
            yield Path(None, None, "NoSuchAddress", f"the ports do not both have an address of {family}")

    def _path(self, probe: Probe, source: Address, target: Address) -> Path:
        reason, text = self._obstacle(probe)
        if reason:
            return Path(source, target, reason, text)
        domain, color = self._domain(probe.source), self._color(probe)
        echo = (128, 0) if source.version == 6 else (8, 0)
        sides = []
        for direction, own, other, address in (
            (Direction.EGRESS, probe.source, probe.target, target),
            (Direction.INGRESS, probe.target, probe.source, source),
        ):
            connection = Connection(
                protocol=probe.protocol,
                version=source.version,
                port=probe.port,
                icmp=probe.icmp or echo,
                identity=other.spec.identity,
                address=address,
                domain=domain or 0,
                color=color,
            )
            sides.append(self._side(own, direction, connection))
        return Path(source, target, egress=sides[0], ingress=sides[1])

    def _side(self, port: Intent[PortSpec], direction: Direction, connection: Connection) -> Side:
        identity = port.spec.identity
        if not self.scopes.guarded.rows.get(port.spec.network):
            return Side(identity, None)
        return Side(identity, judge(self.rules(identity), direction, connection))

    def rules(self, identity: int) -> Rules | None:
        """The rules of an identity, read as a host reads them."""
        body = self.security.bodies.rows.get(identity)
        return _read(identity, body.body) if body else None

    # ---- what is in the way

    def _obstacle(self, probe: Probe) -> tuple[str, str]:
        source, target = probe.source, probe.target
        if source.uid == target.uid:
            return "SameAddress", "a workload reaches itself without the network"
        for word, port in (("Source", source), ("Target", target)):
            if not port.spec.host:
                return f"{word}Unbound", f"{port.name} is on no host"
            place = self.scopes.host_places.rows.get(port.spec.host)
            if place is None or place.fenced:
                return "HostFenced", f"{port.spec.host}, where {port.name} is, is fenced or gone"
        if self._domain(source) is None or self._domain(source) != self._domain(target):
            what = f"{source.spec.network} and {target.spec.network} have no router in common"
            return "NotRouted", what if source.spec.tenant == target.spec.tenant else f"{what}: tenants never meet"
        if shared := set(source.spec.addresses) & set(target.spec.addresses):
            return "SameAddress", f"both have {min(map(str, shared))}"
        return self._colors_apart(probe)

    def _colors_apart(self, probe: Probe) -> tuple[str, str]:
        own = [self._color_name(port) for port in (probe.source, probe.target)]
        named = [color for color in (*own, probe.color) if color]
        if len(set(named)) > 1:
            source, target = (color or "no color" for color in own)
            asked = f", and {probe.color} was asked for" if probe.color else ""
            return "OtherColor", f"the source is of {source}, the target of {target}{asked}: colors never meet"
        if probe.color and not any(own):
            return "OtherColor", f"neither port has a color: a connection between them has none, not {probe.color}"
        return "", ""

    def _domain(self, port: Intent[PortSpec]) -> int | None:
        return self.scopes.domain_of_network.rows.get(port.spec.network)

    def _color_name(self, port: Intent[PortSpec]) -> str:
        segment = self._segment(port)
        return segment[0] if segment and segment[1] else ""

    def _color(self, probe: Probe) -> int:
        """The color of the connection: the colored end's; the same where both are."""
        found = (self._segment(port) for port in (probe.source, probe.target))
        return next((segment[1] for segment in found if segment and segment[1]), 0)

    def _segment(self, port: Intent[PortSpec]) -> tuple[str, int] | None:
        network: Intent[NetworkSpec] | None = self.world.networks.rows.get(port.spec.network)
        segments = network.spec.segments if network else ()
        return next(((s.color, s.color_number) for s in segments if s.uid == port.spec.segment_uid), None)


@lru_cache(maxsize=256)
def _read(identity: int, body: bytes) -> Rules | None:
    try:
        row = decode(rules_key(identity), body)
    except BadResource:
        return None
    return row if isinstance(row, Rules) else None
