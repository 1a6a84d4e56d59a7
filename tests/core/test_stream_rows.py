"""Resources of the stream: parsed at the edge, or refused with a reason."""

from __future__ import annotations

import contextlib
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core import digest
from tealnet.core.rows import stream
from tealnet.core.rows.parse import BadResource
from tealnet.core.rows.stream import Attach, Subnet, decode

UID, OTHER = "0" * 31 + "a", "0" * 31 + "b"
MAC = bytes.fromhex("02aabbccddee")


def prefix(text: str) -> pb.Prefix:
    network = ip_network(text)
    return pb.Prefix(address=network.network_address.packed, length=network.prefixlen)


def localport(**changes: Any) -> bytes:
    fields: dict[str, Any] = {
        "vni": 5,
        "addresses": [ip_address("10.0.0.5").packed, ip_address("fd00::5").packed],
        "mac": MAC,
        "identity": 300,
        "tenant": "acme",
        "name": "web-1",
        "attachment": pb.LocalAttachment(kind=pb.LocalAttachment.KIND_NETNS, where="web-1", interface="eth0"),
    }
    return pb.LocalPort(**(fields | changes)).SerializeToString()


def test_every_kind_becomes_its_row() -> None:
    peer = pb.HostPeer(vtep=ip_address("192.0.2.1").packed, number=3).SerializeToString()
    assert decode(f"hostpeer/{UID}", peer) == stream.HostPeer(UID, ip_address("192.0.2.1"), 3)

    segment = pb.Segment(domain=700, color=0, network_number=9, mtu=1430)
    segment.subnets.add(prefix=prefix("10.0.0.0/24"), gateway=ip_address("10.0.0.1").packed)
    row = decode("segment/5", segment.SerializeToString())
    assert row == stream.Segment(5, 700, 0, 9, 1430, (Subnet(ip_network("10.0.0.0/24"), ip_address("10.0.0.1")),))

    endpoint = pb.Endpoint(
        vni=5,
        addresses=[ip_address("10.0.0.5").packed],
        mac=MAC,
        host_uid=bytes.fromhex(UID),
        previous_host_uid=bytes.fromhex(OTHER),
        identity=300,
        sources=[prefix("10.9.0.0/16")],
    )
    assert decode(f"endpoint/{UID}", endpoint.SerializeToString()) == stream.Endpoint(
        UID, 5, (ip_address("10.0.0.5"),), "02:aa:bb:cc:dd:ee", UID, OTHER, 300, (ip_network("10.9.0.0/16"),)
    )

    port = decode(f"localport/{UID}", localport())
    assert isinstance(port, stream.LocalPort)
    assert (port.kind, port.where, port.interface) == (Attach.NETNS, "web-1", "eth0")
    like_the_port = pb.LocalAttachment(kind=pb.LocalAttachment.KIND_NETNS, interface="eth0")
    assert decode(f"localport/{UID}", localport(attachment=like_the_port)) == port
    assert port.addresses == (ip_address("10.0.0.5"), ip_address("fd00::5"))

    route = pb.Route(domain=700, prefix=prefix("0.0.0.0/0"), next_hop=ip_address("10.0.0.5").packed)
    assert decode("route/700/0.0.0.0/0", route.SerializeToString()) == stream.Route(
        700, ip_network("0.0.0.0/0"), ip_address("10.0.0.5")
    )


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("weights/x", b""),
        (f"localport/{UID}", b"\xff\xff"),
        ("localport/../../etc", localport()),
        (f"localport/{UID.upper()}", localport()),
        (f"localport/{UID}", localport(vni=0)),
        (f"localport/{UID}", localport(vni=1 << 24)),
        (f"localport/{UID}", localport(addresses=[])),
        (f"localport/{UID}", localport(addresses=[b"12345"])),
        (f"localport/{UID}", localport(addresses=[ip_address("::ffff:10.0.0.5").packed])),
        (f"localport/{UID}", localport(mac=b"12345")),
        (f"localport/{UID}", localport(mac=bytes.fromhex("010000000001"))),
        (f"localport/{UID}", localport(tenant="../x")),
        (f"localport/{UID}", localport(name="Web")),
        (f"localport/{UID}", localport(attachment=pb.LocalAttachment(where="a", interface="b"))),
        ("segment/x", pb.Segment(domain=1, network_number=1, mtu=1430).SerializeToString()),
        ("segment/5", pb.Segment(domain=0, network_number=1, mtu=1430).SerializeToString()),
        ("segment/5", pb.Segment(domain=1, color=9, network_number=1, mtu=1430).SerializeToString()),
        ("segment/5", pb.Segment(domain=1, network_number=1, mtu=100).SerializeToString()),
        (f"hostpeer/{UID}", pb.HostPeer(vtep=b"1234", number=0).SerializeToString()),
        ("route/1/10.0.0.0/8", pb.Route(domain=2, prefix=prefix("10.0.0.0/8"), next_hop=b"1234").SerializeToString()),
        ("route/2/10.0.0.0/8", pb.Route(domain=2, prefix=prefix("10.0.0.0/8"), next_hop=bytes(16)).SerializeToString()),
        ("route/2/10.0.0.1/8", pb.Route(domain=2, prefix=pb.Prefix(address=b"\n\0\0\1", length=8)).SerializeToString()),
        (
            "route/2/10.0.0.0/99",
            pb.Route(domain=2, prefix=pb.Prefix(address=b"\n\0\0\0", length=99)).SerializeToString(),
        ),
    ],
)
def test_what_can_not_be_is_refused(key: str, body: bytes) -> None:
    with pytest.raises(BadResource):
        decode(key, body)


@pytest.mark.parametrize(
    ("kind", "where", "interface"),
    [
        ("KIND_NETNS", "../x", "eth0"),
        ("KIND_NETNS", "web-1", "eth/0"),
        ("KIND_NETNS", "web-1", "an-interface-too-long"),
        ("KIND_NETNS_PATH", "run/netns/x", "eth0"),
        ("KIND_NETNS_PATH", "/run/../proc/1/ns/net", "eth0"),
        ("KIND_NETNS_PATH", "/run/netns/x\n", "eth0"),
        ("KIND_DEVICE", "tap 0", ""),
        ("KIND_DEVICE", "", ""),
        # Another port's, by whatever name.
        ("KIND_NETNS_PATH", "/run/netns/globex.secret", "eth0"),
        ("KIND_NETNS_PATH", "/var/run/netns/globex.secret", "eth0"),
        ("KIND_DEVICE", "tn0123456789ab", ""),
    ],
)
def test_names_that_reach_the_system_are_checked(kind: str, where: str, interface: str) -> None:
    attachment = pb.LocalAttachment(kind=kind, where=where, interface=interface)
    with pytest.raises(BadResource):
        decode(f"localport/{UID}", localport(attachment=attachment))


@given(kind=st.sampled_from(stream.KINDS), ident=st.text(max_size=40), body=st.binary(max_size=200))
def test_nothing_but_bad_resource_is_ever_raised(kind: str, ident: str, body: bytes) -> None:
    with contextlib.suppress(BadResource):
        decode(f"{kind}/{ident}", body)


items = st.dictionaries(st.text(max_size=8), st.binary(max_size=8), max_size=8)


@given(items, items)
def test_digest_is_free_of_order_and_history(first: dict[str, bytes], then: dict[str, bytes]) -> None:
    running = digest.Digest.of(first.items())
    for key, body in first.items():
        running.remove(key, body)
    for key, body in reversed(then.items()):
        running.add(key, body)
    assert running == digest.Digest.of(then.items())
    assert len(running.bytes()) == digest.SIZE


@given(items, items)
def test_digests_tell_contents_apart(one: dict[str, bytes], other: dict[str, bytes]) -> None:
    same = digest.Digest.of(one.items()) == digest.Digest.of(other.items())
    assert same == (one == other)


def test_the_zero_byte_keeps_key_and_body_apart() -> None:
    assert digest.term("ab", b"c") != digest.term("a", b"bc")
