"""A controller's end of the stream without a controller: units, with right digests, from wanted scopes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.digest import Digest

Scopes = Mapping[str, Mapping[str, bytes]]  # scope → resource key → body

HOST_UID = "f" * 32


def uid(number: int) -> str:
    """A uid."""
    return f"{number:032x}"


def localport(number: int, *, vni: int = 5, identity: int = 300) -> tuple[str, bytes]:
    """A local port and its address 10.<vni>.0.<number>."""
    message = pb.LocalPort(
        vni=vni,
        addresses=[ip_address(f"10.{vni}.0.{number}").packed],
        mac=bytes((2, 0, 0, 0, vni, number)),
        identity=identity,
        tenant="acme",
        name=f"port-{number}",
        attachment=pb.LocalAttachment(kind=pb.LocalAttachment.KIND_NETNS, where=f"space-{number}", interface="eth0"),
    )
    return f"localport/{uid(number)}", message.SerializeToString()


def endpoint(number: int, *, vni: int = 5, host: str = HOST_UID) -> tuple[str, bytes]:
    """What others know of the same port."""
    message = pb.Endpoint(
        vni=vni,
        addresses=[ip_address(f"10.{vni}.0.{number}").packed],
        mac=bytes((2, 0, 0, 0, vni, number)),
        host_uid=bytes.fromhex(host),
        identity=300,
    )
    return f"endpoint/{uid(number)}", message.SerializeToString()


def segment(vni: int = 5, *, domain: int = 700, mtu: int = 1430) -> tuple[str, bytes]:
    """A segment with one subnet, 10.<vni>.0.0/24."""
    message = pb.Segment(domain=domain, network_number=vni, mtu=mtu)
    prefix = ip_network(f"10.{vni}.0.0/24")
    message.subnets.add(
        prefix=pb.Prefix(address=prefix.network_address.packed, length=24), gateway=ip_address(f"10.{vni}.0.1").packed
    )
    return f"segment/{vni}", message.SerializeToString()


def hostpeer(number: int) -> tuple[str, bytes]:
    """Another host, 192.0.2.<number>."""
    body = pb.HostPeer(vtep=ip_address(f"192.0.2.{number}").packed, number=number)
    return f"hostpeer/{uid(1000 + number)}", body.SerializeToString()


class FakeController:
    """Knows what it has sent and cuts the next unit from that."""

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, bytes]] = {}
        self.revision = 100
        self.lineage = pb.Lineage(number=1, id="first")
        self._unit = 0

    def unit(
        self,
        scopes: Scopes,
        *,
        proofs: Iterable[str] = (),
        whole: Iterable[str] = (),
        requires: Mapping[str, list[str]] | None = None,
    ) -> list[pb.Update]:
        """The unit that brings an agent from what was sent to `scopes`; one part per scope.

        `proofs`: keys of local ports whose removal is proved; `whole`: scopes to be sent whole.
        """
        self._unit += 1
        self.revision += 1
        proven = set(proofs)
        deltas = []
        for name in sorted(self.sent.keys() | scopes.keys()):
            old, new = self.sent.get(name, {}), scopes.get(name)
            if new is None:
                deltas.append(pb.ScopeDelta(scope=name, dropped=True))
                continue
            delta = pb.ScopeDelta(scope=name, whole=name in whole)
            changed = new if delta.whole else {key: body for key, body in new.items() if old.get(key) != body}
            for key, body in changed.items():
                delta.upserts.add(key=key, body=body, requires=(requires or {}).get(key, []))
            gone = (old.keys() - new.keys()) if not delta.whole else set()
            for key in gone | proven:
                delta.removals.add(key=key, proof=self.revision if key in proven else 0)
            digest = Digest.of(new.items())
            delta.digest.CopyFrom(pb.ScopeDigest(scope=name, digest=digest.bytes(), count=digest.count))
            deltas.append(delta)
        self.sent = {name: dict(rows) for name, rows in scopes.items()}
        return [
            pb.Update(
                unit=self._unit,
                part=part,
                last=part == len(deltas) - 1,
                revision=self.revision,
                lineage=self.lineage,
                scopes=[delta],
            )
            for part, delta in enumerate(deltas)
        ] or [pb.Update(unit=self._unit, last=True, revision=self.revision, lineage=self.lineage)]
