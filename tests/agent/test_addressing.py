"""Addresses and routes of the interfaces of one workload namespace: no prefix twice, whatever they are attached to."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import names
from agent.features.l2_port import Interface, addressing_of
from agent.objects import Route
from tealnet.core.rows.stream import Attach, LocalPort, Segment, Subnet

# name → (routing domain, third byte of its prefixes); `twin` has the prefixes of `db` in another domain.
NETWORKS = {"web": (1, 0), "db": (1, 1), "cache": (1, 2), "ops": (2, 3), "far": (2, 4), "twin": (3, 1), "lone": (4, 5)}


def segment(name: str) -> Segment:
    domain, third = NETWORKS[name]
    four, six = f"10.0.{third}", f"fd00:0:0:{third}"
    subnets = (
        Subnet(ip_network(f"{four}.0/24"), ip_address(f"{four}.1")),
        Subnet(ip_network(f"{six}::/64"), ip_address(f"{six}::1")),
    )
    number = list(NETWORKS).index(name) + 1
    return Segment(vni=number, domain=domain, color=0, network_number=number, mtu=1430, subnets=subnets)


SEGMENTS = {name: segment(name) for name in NETWORKS}


def interface(name: str, network: str, *versions: int) -> Interface:
    own = SEGMENTS[network]
    third = NETWORKS[network][1]
    last = 10 + int(name.removeprefix("eth"))
    addresses = {4: ip_address(f"10.0.{third}.{last}"), 6: ip_address(f"fd00:0:0:{third}::{last}")}
    port = LocalPort(
        uid=f"{last:032x}",
        vni=own.vni,
        addresses=tuple(addresses[version] for version in versions or (4, 6)),
        mac=f"02:00:00:00:00:{last:02x}",
        identity=1,
        sources=(),
        tenant="acme",
        name=f"box-{name}",
        kind=Attach.NETNS,
        where="box",
        interface=name,
    )
    return Interface(port, names.device(port), own, tuple(s for s in SEGMENTS.values() if s.domain == own.domain))


def plan(*interfaces: Interface) -> dict[str, dict[str, str]]:
    """Interface → prefix → gateway."""
    found = {
        one.port.interface: addressing_of(one, beside=[x for x in interfaces if x is not one]) for one in interfaces
    }
    return {name: {route.prefix: route.gateway for route in wanted.routes} for name, wanted in found.items()}


DEFAULT = {"0.0.0.0/0": "10.0.0.1", "::/0": "fe80::1"}


def test_one_interface_has_its_addresses_and_the_default_routes() -> None:
    wanted = addressing_of(interface("eth0", "web"), beside=())
    assert wanted.addresses == ("10.0.0.10/24", "fd00::10/64")
    assert wanted.routes == (Route("0.0.0.0/0", "10.0.0.1"), Route("::/0", "fe80::1"))


def test_another_domain_is_reached_by_its_interface() -> None:
    assert plan(interface("eth0", "web"), interface("eth1", "ops")) == {
        "eth0": DEFAULT,
        "eth1": {"10.0.4.0/24": "10.0.3.1", "fd00:0:0:4::/64": "fe80::1"},
    }


def test_a_second_interface_in_the_same_domain_adds_only_its_own_network() -> None:
    """The kernel has a route to `web` by eth0 already; another one was refused and the port failed."""
    assert plan(interface("eth0", "web"), interface("eth1", "db")) == {"eth0": DEFAULT, "eth1": {}}


def test_of_two_interfaces_in_a_further_domain_one_leads_to_the_rest() -> None:
    found = plan(interface("eth0", "lone"), interface("eth1", "web"), interface("eth2", "db"))
    assert found["eth1"] == {"10.0.2.0/24": "10.0.0.1", "fd00:0:0:2::/64": "fe80::1"}
    assert found["eth2"] == {}


def test_the_same_prefix_in_two_domains_goes_to_the_first() -> None:
    found = plan(interface("eth0", "lone"), interface("eth1", "web"), interface("eth2", "twin"))
    assert found["eth1"] == {"10.0.2.0/24": "10.0.0.1", "fd00:0:0:2::/64": "fe80::1"}
    assert found["eth2"] == {}


def test_each_family_has_its_own_default_route() -> None:
    found = plan(interface("eth0", "web", 4), interface("eth1", "ops", 6))
    assert found == {"eth0": {"0.0.0.0/0": "10.0.0.1"}, "eth1": {"::/0": "fe80::1"}}


@pytest.mark.parametrize("uid", ["0" * 32, "f" * 32])
def test_two_ports_that_claim_one_name_still_agree(uid: str) -> None:
    """For a moment, when one takes the other's place."""
    first = interface("eth0", "web")
    other = interface("eth0", "db")
    other = Interface(
        LocalPort(**{name: getattr(other.port, name) for name in LocalPort.__slots__} | {"uid": uid}),
        other.device,
        other.segment,
        other.domain,
    )
    routes = [*addressing_of(first, beside=[other]).routes, *addressing_of(other, beside=[first]).routes]
    assert sorted(route.prefix for route in routes) == ["0.0.0.0/0", "::/0"]


FAMILIES = [(4,), (6,), (4, 6)]


@given(st.lists(st.tuples(st.sampled_from(sorted(NETWORKS)), st.sampled_from(FAMILIES)), min_size=1, max_size=6))
def test_no_prefix_stands_twice(chosen: list[tuple[str, tuple[int, ...]]]) -> None:
    interfaces = [interface(f"eth{number}", network, *versions) for number, (network, versions) in enumerate(chosen)]
    found = plan(*interfaces)
    prefixes = [prefix for routes in found.values() for prefix in routes]
    assert len(prefixes) == len(set(prefixes))
    own = {str(subnet.prefix) for one in interfaces for version in (4, 6) for subnet in one.subnets(version)}
    assert not own & set(prefixes), "the kernel has these by itself"
    for version, default in ((4, "0.0.0.0/0"), (6, "::/0")):
        assert (default in prefixes) == any(one.subnets(version) for one in interfaces)
