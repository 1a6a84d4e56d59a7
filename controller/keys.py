"""The key schema of the store, in one place (DESIGN/store: keys and transactions).

Root `/tealnet/<cluster uid>/v1/`. `w/` is the one watched range: what tables need. `k/` is never watched, only
compared: uniqueness, references, quota slots, request ids. Names are keys of objects; everything else uses uids, so
that a re-created name inherits nothing. An address in a key is 32 hex of its 16-byte (v4-mapped) form, so that ranges
of addresses are ranges of keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


COLLECTIONS = {
    "tenant": "tenants",
    "host": "hosts",
    "network": "networks",
    "router": "routers",
    "port": "ports",
    "rollout": "rollouts",
    "group": "securityGroups",
    "tier": "policyTiers",
}
"""The kinds of intents, and how each is called in resource names; a split's name is its network's and one part more."""
OWNED = ("network", "router", "port", "rollout", "group")
"""Kinds that belong to a tenant."""
_KINDS = {collection: kind for kind, collection in COLLECTIONS.items()}


def mapped(address: Address) -> int:
    """The 128-bit number of an address; v4 as v4-mapped v6 (RFC 4291, 2.5.5.2)."""
    return int(address) | (0xFFFF << 32) if address.version == 4 else int(address)


def address_hex(address: Address) -> str:
    """32 hex digits of the v4-mapped form."""
    return f"{mapped(address):032x}"


def cluster_key(cluster: str) -> bytes:
    """Where the uid of a cluster stands; outside its root."""
    return f"/tealnet/clusters/{cluster}".encode()


@dataclass(frozen=True, slots=True)
class Keys:
    """Every key there is, for one cluster uid (32 hex)."""

    cluster_uid: str

    def _key(self, text: str) -> bytes:
        return f"/tealnet/{self.cluster_uid}/v1/{text}".encode()

    @property
    def watched(self) -> bytes:
        """Prefix of the one watched range."""
        return self._key("w/")

    def relative(self, key: bytes) -> str:
        """A key without the root: `w/o/…`."""
        return key[len(self._key("")) :].decode()

    # --- w/: tables ---

    def intent(self, name: str) -> bytes:
        """An intent by resource name: tenants/acme → w/o/tenant/acme, tenants/acme/ports/p → w/o/port/acme/p.

        A split's is tenants/acme/networks/web/trafficSplit → w/o/split/acme/web.
        """
        parts = name.split("/")
        if parts[0] == "tenants" and len(parts) == 5 and (parts[2], parts[4]) == ("networks", "trafficSplit"):
            return self._key(f"w/o/split/{parts[1]}/{parts[3]}")
        kind = _KINDS.get(parts[-2], "") if len(parts) in (2, 4) else ""
        if kind in OWNED and parts[0] == "tenants" and len(parts) == 4:
            return self._key(f"w/o/{kind}/{parts[1]}/{parts[3]}")
        if kind and kind not in OWNED and len(parts) == 2:
            return self._key(f"w/o/{kind}/{parts[1]}")
        raise ValueError(f"not a resource name: {name}")

    def identity(self, number: int) -> bytes:
        """Issued identity number."""
        return self._key(f"w/n/identity/{number}")

    def domain_guard(self, router_uid: str) -> bytes:
        """Guard of the set of networks and routes of a router."""
        return self._key(f"w/g/domain/{router_uid}")

    def tombstone(self, host_uid: str, port_uid: str) -> bytes:
        """Proof that a port is to go from a host."""
        return self._key(f"w/t/{host_uid}/{port_uid}")

    def address_tombstone(self, *, host_uid: str, port_uid: str, address: Address) -> bytes:
        """Quarantine of one address of a living port; never proof."""
        return self._key(f"w/t/{host_uid}/{port_uid}/{address_hex(address)}")

    def port_status(self, uid: str) -> bytes:
        """Transitions of one port."""
        return self._key(f"w/s/port/{uid}")

    def host_status(self, uid: str) -> bytes:
        """What is kept of a host between sessions."""
        return self._key(f"w/s/host/{uid}")

    def replica(self, replica: str) -> bytes:
        """One controller process."""
        return self._key(f"w/s/replica/{replica}")

    def rollout_report(self, uid: str, replica: str) -> bytes:
        """What the hosts in session with a replica report for a rollout."""
        return self._key(f"w/s/rollout/{uid}/{replica}")

    def rollout_step(self, uid: str, step: int) -> bytes:
        """Who had a step of a rollout when."""
        return self._key(f"w/s/step/{uid}/{step}")

    def confirmation(self, uid: str) -> bytes:
        """A rollout can be confirmed as long as this is there; on a lease that nobody renews."""
        return self._key(f"w/l/confirm/{uid}")

    def session(self, host_uid: str) -> bytes:
        """The live stream of a host."""
        return self._key(f"w/h/{host_uid}")

    def barrier(self, barrier: str) -> bytes:
        """A question to all replicas."""
        return self._key(f"w/b/{barrier}")

    def barrier_answer(self, barrier: str, replica: str) -> bytes:
        """One replica's answer."""
        return self._key(f"w/b/{barrier}/{replica}")

    def beat(self, replica: str) -> bytes:
        """Heartbeat that shows the own watch is alive."""
        return self._key(f"w/b/beat/{replica}")

    def event(self, uid: str, number: int) -> bytes:
        """One event of an object."""
        return self._key(f"w/e/{uid}/{number:020d}")

    def events(self, uid: str) -> bytes:
        """Prefix of an object's events; with "" of all."""
        return self._key(f"w/e/{uid}/" if uid else "w/e/")

    @property
    def chores(self) -> bytes:
        """The lease of the elected replica."""
        return self._key("w/l/chores")

    @property
    def format(self) -> bytes:
        """Lowest feature level of live replicas."""
        return self._key("w/m/format")

    def lineage(self, number: int) -> bytes:
        """One id of the store's history."""
        return self.lineage_prefix + str(number).encode()

    @property
    def lineage_prefix(self) -> bytes:
        """Prefix of all ids of the history."""
        return self._key("w/m/lineage/")

    # --- k/: compared only ---

    def vni(self, number: int) -> bytes:
        """VNI."""
        return self._key(f"k/u/vni/{number}")

    @property
    def vni_prefix(self) -> bytes:
        """Prefix of all VNIs."""
        return self._key("k/u/vni/")

    @property
    def domain_prefix(self) -> bytes:
        """Prefix of all routing domain numbers."""
        return self._key("k/u/domain/")

    def domain(self, number: int) -> bytes:
        """Routing domain number."""
        return self._key(f"k/u/domain/{number}")

    def host_number(self, number: int) -> bytes:
        """Host number in tunnels, 1…65,534."""
        return self._key(f"k/u/hostno/{number}")

    def network_number(self, number: int) -> bytes:
        """Network number, 1…2^31-1."""
        return self._key(f"k/u/netno/{number}")

    def identity_set(self, digest: str) -> bytes:
        """The identity number of a (tenant, set of groups), by its hash."""
        return self._key(f"k/u/identity/{digest}")

    def vtep(self, address: Address) -> bytes:
        """Tunnel address."""
        return self._key(f"k/u/vtep/{address_hex(address)}")

    def ip(self, segment_uid: str, address: Address) -> bytes:
        """One address of a segment."""
        return self._key(f"k/u/ip/{segment_uid}/{address_hex(address)}")

    def ips(self, segment_uid: str, first: Address, last: Address) -> tuple[bytes, bytes]:
        """The range of keys of all addresses from one to another, both included; the range's end is exclusive."""
        prefix = f"k/u/ip/{segment_uid}/"
        # The key after the last one: its own bytes and a zero byte.
        return self._key(prefix + address_hex(first)), self._key(prefix + address_hex(last)) + b"\0"

    def mac(self, segment_uid: str, mac: str) -> bytes:
        """One MAC of a segment; 12 hex."""
        return self._key(f"k/u/mac/{segment_uid}/{mac.replace(':', '')}")

    def nics(self, host_uid: str, namespace: str) -> bytes:
        """Prefix of all interfaces in a namespace (its path with %2F for slashes) of a host."""
        return self._key(f"k/u/nic/{host_uid}/{namespace.replace('/', '%2F')}/")

    def nic(self, *, host_uid: str, namespace: str, tenant_uid: str, interface: str) -> bytes:
        """An interface name in a namespace of a host. By tenant, so that the others' are ranges of keys."""
        return self.nics(host_uid, namespace) + f"{tenant_uid}/{interface}".encode()

    def device(self, host_uid: str, device: str) -> bytes:
        """An existing device of a host."""
        return self._key(f"k/u/dev/{host_uid}/{device}")

    def rollout_of(self, network_uid: str) -> bytes:
        """The unfinished rollout that a network's weights belong to."""
        return self._key(f"k/u/rollout/{network_uid}")

    def references(self, kind: str, uid: str) -> bytes:
        """Prefix of all that refer to an object."""
        return self._key(f"k/r/{kind}/{uid}/")

    def reference(self, *, kind: str, uid: str, by_kind: str, by_uid: str) -> bytes:
        """`by` refers to the object. Its value is the Holder: the referrer's name."""
        return self._key(f"k/r/{kind}/{uid}/{by_kind}/{by_uid}")

    def slot(self, *, tenant_uid: str, kind: str, slot: int) -> bytes:
        """A quota slot."""
        return self._key(f"k/q/{tenant_uid}/{kind}/{slot}")

    def request(self, tenant_uid: str, request_id: str) -> bytes:
        """A caller's request id; the tenant uid is "-" for admins' global objects."""
        return self._key(f"k/i/{tenant_uid}/{request_id}")

    def join_token(self, host_uid: str) -> bytes:
        """A one-time join token."""
        return self._key(f"k/j/{host_uid}")
