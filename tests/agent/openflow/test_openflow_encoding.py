"""Matches, actions, flows and groups: what is refused where it is made, and that content is identity."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Address, ip_address

import pytest

from agent.openflow import actions as act
from agent.openflow.errors import ProtocolError
from agent.openflow.flow import (
    CONTENT_GROUP,
    MARK,
    Bucket,
    Flow,
    GroupKind,
    content_group,
    is_ours,
    issued_group,
)
from agent.openflow.message import flow_add, flush_connection, group_write
from agent.openflow.oxm import Value, decode, match
from agent.openflow.text import actions_text, flow_text, match_text


def test_the_order_of_fields_is_not_the_order_of_arguments() -> None:
    one = match(metadata=(1, 0xFF), ip=True, ip_src="10.0.0.1", in_port=3, reg1=7)
    other = match(reg1=7, in_port=3, ip_src="10.0.0.1", ip=True, metadata=(1, 0xFF))
    assert one == other
    assert match_text(one) == "ip,in_port=3,nw_src=10.0.0.1,reg1=0x7,metadata=0x1/0xff"


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"ip": 1, "nw_dst": "10.0.0.0/24"}, {"eth_type": 0x800, "ip_dst": IPv4Network("10.0.0.0/24")}),
        ({"ip": 1, "ip_dst": (0x0A000000, 0xFFFFFF00)}, {"ip": 1, "ip_dst": "10.0.0.0/255.255.255.0"}),
        ({"ipv6": 1, "ipv6_src": "fd00::1"}, {"dl_type": 0x86DD, "ipv6_src": IPv6Address("fd00::1")}),
        ({"ipv6": 1, "ipv6_src": "fd00::/64"}, {"ipv6": 1, "ipv6_src": (0xFD00 << 112, ((1 << 64) - 1) << 64)}),
        ({"dl_src": "02:00:00:00:00:01"}, {"eth_src": 0x020000000001}),
        ({"ct_state": "+trk-new"}, {"ct_state": (32, 33)}),
        ({"tcp": 1, "tcp_flags": "+syn-ack"}, {"ip": 1, "ip_proto": 6, "tcp_flags": (2, 18)}),
        ({"ip": 1, "nw_frag": "later"}, {"ip": 1, "ip_frag": (3, 3)}),
        ({"reg0": "0x10/0xff"}, {"xreg0": (0x10 << 32, 0xFF << 32)}),
        ({"reg4": 1, "reg5": 2}, {"xreg2": 1 << 32 | 2}),
        ({"xxreg0": 5}, {"xreg0": 0, "xreg1": 5}),
        ({"vlan_tci": 0}, {"vlan_tci": (0, 0x1FFF)}),
        ({"reg3": (0, 0), "ip": 1, "ip_src": "0.0.0.0/0"}, {"ip": 1}),
    ],
)
def test_ways_to_say_the_same(given: dict[str, Value], same: dict[str, Value]) -> None:
    assert match(**given) == match(**same)


@pytest.mark.parametrize(
    "given",
    [
        {"no_such_field": 1},
        {"ip_src": "10.0.0.1"},  # of what?
        {"arp": 1, "ip_src": "10.0.0.1"},
        {"ip": 1, "arp": 1},
        {"ip": 1, "tcp_dst": 80},
        {"tcp": 1, "udp_dst": 80},
        {"icmp6": 1, "nd_target": "fd00::1"},
        {"icmp6": 1, "icmpv6_type": 136, "nd_sll": 1},
        {"ip": 1, "ip_src": "10.0.0.1/24"},
        {"reg0": (3, 1)},
        {"reg0": 1 << 32},
        {"reg0": -1},
        {"reg0": 1, "xreg0": 1},
        {"in_port": "eth0"},
        {"ct_state": "+bogus"},
        {"reg0": "+trk"},
        {"vlan_tci": 0x2000},
        {"ct_state": "+"},
    ],
)
def test_what_a_switch_would_refuse_is_refused_here(given: dict[str, Value]) -> None:
    with pytest.raises(ValueError):
        match(**given)


def test_decode_gives_back_what_was_encoded() -> None:
    fields = decode(match(icmp6=True, icmpv6_type=135, nd_target="fe80::1", eth_dst=(0, 1 << 40)))
    assert [(found.name, value) for found, value, _ in fields] == [
        ("eth_dst", 0),
        ("eth_type", 0x86DD),
        ("ip_proto", 58),
        ("icmpv6_type", 135),
        ("nd_target", int(IPv6Address("fe80::1"))),
    ]
    assert fields[0][2] == 1 << 40


def test_slices() -> None:
    assert act.set_field("reg11[16..31]", 22) == act.set_field("reg11", 22 << 16, mask=0xFFFF0000)
    assert act.set_field("reg11[0..31]", 22) == act.set_field("reg11", 22)
    assert actions_text(act.move("xreg4[0..47]", "eth_dst")) == "move:xreg4[0..47]->eth_dst[]"
    assert actions_text(act.check_pkt_larger(1514, "reg13[6]")) == "check_pkt_larger(1514)->reg13[6]"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (act.move, ("reg0", "eth_dst")),
        (act.move, ("reg0[0..32]", "eth_dst")),
        (act.move, ("reg0[5..2]", "eth_dst")),
        (act.move, ("reg0 [0]", "reg1[0]")),
        (act.set_field, ("reg0[0..3]", 16)),
        (act.set_field, ("reg16", 0)),
        (act.set_field, ("eth_dst", 1 << 48)),
        (act.check_pkt_larger, (1500, "reg0[0..1]")),
    ],
)
def test_actions_that_cannot_be(function: object, arguments: tuple[object, ...]) -> None:
    with pytest.raises(ValueError):
        function(*arguments)  # type: ignore[operator]
    with pytest.raises(ValueError):
        act.ct(zone="reg0")


def test_a_cookie_says_whose_who_and_what() -> None:
    flow = Flow(table=5, priority=10, match=match(in_port=1), actions=act.resubmit(10), feature=2)
    assert flow.cookie >> 56 == MARK
    assert flow.cookie >> 48 & 0xFF == 2
    assert is_ours(flow.cookie)
    assert not is_ours(0)
    variants = [
        Flow(6, 10, flow.match, flow.actions, 2),
        Flow(5, 11, flow.match, flow.actions, 2),
        Flow(5, 10, b"", flow.actions, 2),
        Flow(5, 10, flow.match, b"", 2),
        Flow(5, 10, flow.match, flow.actions, 3),
        Flow(5, 10, b"", flow.match + flow.actions, 2),
    ]
    assert len({each.cookie for each in (flow, *variants)}) == 7
    assert Flow(5, 10, match(in_port=1), act.resubmit(10), 2) == flow


def test_a_flow_that_no_switch_could_have() -> None:
    with pytest.raises(ProtocolError):
        Flow(256, 0, b"", b"", 1)
    with pytest.raises(ProtocolError):
        Flow(0, 1 << 16, b"", b"", 1)
    huge = Flow(0, 0, b"", act.resubmit(1) * 5000, 1)
    with pytest.raises(ProtocolError):
        flow_add(1, huge)
    buckets = [Bucket(act.resubmit(1), 1)] * 3000
    with pytest.raises(ProtocolError):
        group_write(1, issued_group(1, GroupKind.SELECT, buckets=buckets))


def test_a_content_group_is_its_content() -> None:
    buckets = [Bucket(act.resubmit(1), 1), Bucket(act.resubmit(2), 2)]
    one = content_group(GroupKind.SELECT, buckets=buckets)
    assert one == content_group(GroupKind.SELECT, buckets=iter(buckets))
    assert one.group_id & CONTENT_GROUP
    others = [
        content_group(GroupKind.ALL, buckets=buckets),
        content_group(GroupKind.SELECT, buckets=buckets[::-1]),
        content_group(GroupKind.SELECT, buckets=buckets, selection_method="dp_hash"),
        content_group(GroupKind.SELECT, buckets=buckets, selection_method="hash", fields=("ip_src",)),
    ]
    assert len({each.group_id for each in (one, *others)}) == 5
    assert one.key == ("group", one.group_id)


def test_text_of_a_flow() -> None:
    flow = Flow(
        table=35,
        priority=97,
        match=match(ip=True, metadata=(1, 0xFF), ct_state="+trk-new", vlan_tci=0, reg13=(34, 34)),
        actions=act.ct(zone="reg11[0..15]", table=25, flags=act.CT_COMMIT, actions=act.set_field("ct_mark", 0xFF))
        + act.clone(act.set_field("metadata[32..39]", 1), act.resubmit(36))
        + act.conjunction(5, 1, 2)
        + act.ct_clear()
        + act.to_in_port(),
        feature=1,
    )
    assert flow_text(flow).split(",", 1)[1] == (
        "table=35,priority=97,ip,vlan_tci=0x0/0x1fff,reg13=0x22/0x22,ct_state=-new+trk,metadata=0x1/0xff "
        "actions=ct(commit,table=25,zone=reg11[0..15],exec(set_field:0xff->ct_mark)),"
        "clone(set_field:0x100000000/0xff00000000->metadata,resubmit(,36)),conjunction(5,1/2),ct_clear,IN_PORT"
    )


@pytest.mark.parametrize(
    ("protocol", "ends", "as_ovs_ofctl_sends_it"),
    [
        (
            6,
            ("::ffff:10.30.0.10", "::ffff:10.11.0.7"),
            "06040068000000020000232000000020060000000000000000000048000000000000001400000000000000000000ffff"
            "0a1e000a000000000001001400000000000000000000ffff0a0b000700000000000200080fa000000003000800500000"
            "00020008000a0000",
        ),
        (
            17,
            ("fd30::10", "fd11::7"),
            "060400680000000200002320000000201100000000000000000000480000000000000014fd3000000000000000000000"
            "000000100000000000010014fd11000000000000000000000000000700000000000200080fa000000003000800500000"
            "00020008000a0000",
        ),
    ],
)
def test_one_connection_is_forgotten(protocol: int, ends: tuple[str, str], as_ovs_ofctl_sends_it: str) -> None:
    source, target = (int(ip_address(end)) for end in ends)
    sent = flush_connection(2, zone=10, protocol=protocol, ends=(source, target), ports=(4000, 80))
    assert sent.hex() == as_ovs_ofctl_sends_it


def test_echo_requests_are_never_forgotten_one_by_one() -> None:
    with pytest.raises(ProtocolError):
        flush_connection(2, zone=10, protocol=58, ends=(1, 2), ports=(5, 0))
