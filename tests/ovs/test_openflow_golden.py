"""Our encoder against ovs-ofctl: the same flows, said by both, are the same flows in the switch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from agent.drivers.openflow import Key, Value
from agent.openflow import actions as act
from agent.openflow.flow import Bucket, Flow, Group, GroupKind, issued_group
from agent.openflow.oxm import match
from agent.openflow.text import flow_text
from agent.pipeline import base_flows
from tests.ovs.sandbox import Sandbox, connected

pytestmark = pytest.mark.ovs

COLOR = 0xFF00000000
DOMAIN, DOMAIN_COLOR = 0xFFFFFFFF, 0xFFFFFFFFFF
MAC, ROUTER = "02:10:00:01:00:05", "02:74:6e:00:00:01"
TO_MARK = act.move("metadata[32..39]", "ct_mark[0..7]")
FIRST, SECOND = (act.set_field("metadata", color << 32, mask=COLOR) + act.resubmit(36) for color in (1, 2))


def flow(table: int, priority: int, match_: bytes, *actions: bytes) -> Flow:
    return Flow(table, priority, match_, b"".join(actions), 1)


# Flows of the prototype pipeline: ours, and in the words of ovs-ofctl.
GOLDEN: list[tuple[Flow, str]] = [
    (
        flow(0, 100, match(in_port=1), act.set_field("reg13", 1), *map(act.resubmit, (2, 3, 5))),
        "table=0,priority=100,in_port=1 actions=set_field:1->reg13,resubmit(,2),resubmit(,3),resubmit(,5)",
    ),
    (
        flow(2, 10, match(tun_src="192.0.2.1"), act.set_field("reg12", 1)),
        "table=2,priority=10,tun_src=192.0.2.1 actions=set_field:1->reg12",
    ),
    (
        flow(2, 10, match(tun_ipv6_src="fd00::1"), act.set_field("reg12", 1)),
        "table=2,priority=10,tun_ipv6_src=fd00::1 actions=set_field:1->reg12",
    ),
    (
        flow(3, 10, match(tun_id=1001), act.set_field("metadata", 0x100000001)),
        "table=3,priority=10,tun_id=1001 actions=set_field:0x100000001->metadata",
    ),
    (
        flow(
            5, 10, match(reg12=1, metadata=(1, DOMAIN), ip=True, ip_src="10.3.0.11", vlan_tci=0),
            act.set_field("reg10", 101), act.resubmit(30),
        ),
        "table=5,priority=10,reg12=1,metadata=0x1/0xffffffff,ip,nw_src=10.3.0.11,vlan_tci=0 "
        "actions=set_field:101->reg10,resubmit(,30)",
    ),
    (
        flow(
            5, 10, match(reg12=1, metadata=(0x100000001, DOMAIN_COLOR), ipv6=True, ipv6_src="fd00:1::5", vlan_tci=0),
            act.set_field("reg10", 102), act.resubmit(30),
        ),
        "table=5,priority=10,reg12=1,metadata=0x100000001/0xffffffffff,ipv6,ipv6_src=fd00:1::5,vlan_tci=0 "
        "actions=set_field:102->reg10,resubmit(,30)",
    ),
    (
        flow(
            40, 10, match(metadata=(1, DOMAIN), xxreg0=0xFFFF0A03000B),
            act.set_field("xreg4", 0x2100002000B), act.set_field("reg4", 1), act.set_field("reg7", 101),
        ),
        "table=40,priority=10,metadata=0x1/0xffffffff,xxreg0=0x00000000000000000000ffff0a03000b "
        "actions=set_field:0x2100002000b->xreg4,set_field:1->reg4,set_field:101->reg7",
    ),
    (
        flow(
            40, 10, match(metadata=(0x100000001, DOMAIN_COLOR), xxreg0="fd00:2::5"),
            act.set_field("reg11[16..31]", 0x16), act.set_field("reg13", 8, mask=8),
        ),
        "table=40,priority=10,metadata=0x100000001/0xffffffffff,xxreg0=0xfd000002000000000000000000000005 "
        "actions=set_field:0x160000/0xffff0000->reg11,set_field:8/8->reg13",
    ),
    (
        flow(
            10, 90, match(in_port=22, vlan_tci=0, dl_src=MAC, arp=True, arp_sha=MAC, arp_spa="10.2.0.5"),
            act.resubmit(15),
        ),
        f"table=10,in_port=22,vlan_tci=0,dl_src={MAC},priority=90,arp,arp_sha={MAC},arp_spa=10.2.0.5 "
        "actions=resubmit(,15)",
    ),
    (
        flow(
            10, 90,
            match(in_port=22, vlan_tci=0, dl_src=MAC, icmp6=True, icmpv6_type=135, ipv6_src="fe80::10:ff:fe01:5",
                  nd_sll="00:00:00:00:00:00"),
            act.resubmit(15),
        ),
        f"table=10,in_port=22,vlan_tci=0,dl_src={MAC},priority=90,icmp6,icmp_type=135,ipv6_src=fe80::10:ff:fe01:5,"
        "nd_sll=00:00:00:00:00:00 actions=resubmit(,15)",
    ),
    (
        flow(15, 110, match(in_port=22, icmp6=True, icmpv6_type=135, nd_target="fd00:2::5")),
        "table=15,priority=110,in_port=22,icmp6,icmp_type=135,nd_target=fd00:2::5 actions=drop",
    ),
    (
        flow(
            15, 100, match(arp=True, arp_op=1), act.move("arp_tpa", "xxreg0[0..31]"),
            act.set_field("reg2", 0xFFFF), act.set_field("xreg4", 0), act.resubmit(40), act.resubmit(16),
        ),
        "table=15,priority=100,arp,arp_op=1 actions=move:OXM_OF_ARP_TPA[]->NXM_NX_XXREG0[0..31],"
        "set_field:0xffff->reg2,set_field:0->xreg4,resubmit(,40),resubmit(,16)",
    ),
    (
        flow(
            16, 10, match(arp=True), act.move("eth_src", "eth_dst"), act.move("xreg4[0..47]", "eth_src"),
            act.set_field("arp_op", 2), act.move("arp_sha", "arp_tha"), act.move("arp_spa", "arp_tpa"),
            act.move("xreg4[0..47]", "arp_sha"), act.move("xxreg0[0..31]", "arp_spa"), act.to_in_port(),
        ),
        "table=16,priority=10,arp actions=move:OXM_OF_ETH_SRC[]->OXM_OF_ETH_DST[],"
        "move:OXM_OF_PKT_REG4[0..47]->OXM_OF_ETH_SRC[],set_field:2->arp_op,move:NXM_NX_ARP_SHA[]->NXM_NX_ARP_THA[],"
        "move:OXM_OF_ARP_SPA[]->OXM_OF_ARP_TPA[],move:OXM_OF_PKT_REG4[0..47]->NXM_NX_ARP_SHA[],"
        "move:NXM_NX_XXREG0[0..31]->OXM_OF_ARP_SPA[],IN_PORT",
    ),
    (
        flow(
            16, 10, match(icmp6=True, icmpv6_type=135), act.move("xxreg0", "ipv6_src"), act.set_field("nw_ttl", 255),
            act.set_field("icmpv6_type", 136), act.set_field("nd_options_type", 2),
            act.set_field("nd_reserved", 0x60000000), act.resubmit(17),
        ),
        "table=16,priority=10,icmp6,icmp_type=135 actions=move:NXM_NX_XXREG0[]->NXM_NX_IPV6_SRC[],"
        "set_field:255->nw_ttl,set_field:136->icmpv6_type,set_field:2->nd_options_type,"
        "set_field:0x60000000->nd_reserved,resubmit(,17)",
    ),
    (
        flow(
            17, 10, match(icmp6=True, icmpv6_type=136, icmpv6_code=0), act.move("xreg4[0..47]", "nd_tll"),
            act.to_in_port(),
        ),
        "table=17,priority=10,icmp6,icmp_type=136,icmp_code=0 "
        "actions=move:OXM_OF_PKT_REG4[0..47]->NXM_NX_ND_TLL[],IN_PORT",
    ),
    (
        flow(20, 10, match(reg13=(4, 4), ip=True), act.ct(table=25, zone="reg11[0..15]")),
        "table=20,priority=10,reg13=4/4,ip actions=ct(table=25,zone=NXM_NX_REG11[0..15])",
    ),
    (flow(25, 100, match(ct_state="+trk+inv")), "table=25,priority=100,ct_state=+trk+inv actions=drop"),
    (
        flow(
            71, 9, match(ct_state="+trk-inv", ip=True, ct_nw_src="10.0.0.0/29", ct_nw_proto=6, ct_tp_dst=(80, 0xFFF0)),
            act.conjunction(1001, 1, 2), act.conjunction(1002, 2, 2),
        ),
        "table=71,priority=9,ct_state=+trk-inv,ip,ct_nw_src=10.0.0.0/29,ct_nw_proto=6,ct_tp_dst=0x50/0xfff0 "
        "actions=conjunction(1001,1/2),conjunction(1002,2/2)",
    ),
    (
        flow(
            71, 9, match(ct_state="+trk-inv", ipv6=True, ct_ipv6_dst="fd00::/64", ct_nw_proto=58, ct_tp_src=128),
            act.to_controller(128),
        ),
        "table=71,priority=9,ct_state=+trk-inv,ipv6,ct_ipv6_dst=fd00::/64,ct_nw_proto=58,ct_tp_src=128 "
        "actions=controller(max_len=128)",
    ),
    (
        flow(
            25, 90, match(ct_state="+trk-new", metadata=(0, COLOR)), act.move("ct_mark[0..7]", "metadata[32..39]"),
            act.resubmit(30),
        ),
        "table=25,priority=90,ct_state=+trk-new,metadata=0/0xff00000000 "
        "actions=move:NXM_NX_CT_MARK[0..7]->OXM_OF_METADATA[32..39],resubmit(,30)",
    ),
    (
        flow(
            25, 75, match(ct_state="+trk+new", tcp=True, tcp_flags=(0, 2), metadata=(0, COLOR)),
            act.set_field("reg13", 48, mask=48), act.resubmit(30),
        ),
        "table=25,priority=75,ct_state=+trk+new,tcp,tcp_flags=0x000/0x002,metadata=0/0xff00000000 "
        "actions=set_field:48/48->reg13,resubmit(,30)",
    ),
    (
        flow(50, 75, match(ct_state="+trk+new", tcp6=True, tcp_flags="-syn", reg13=(2, 2))),
        "table=50,priority=75,ct_state=+trk+new,tcp6,tcp_flags=0x000/0x002,reg13=2/2 actions=drop",
    ),
    (
        flow(
            30, 49, match(metadata=(1, DOMAIN), ip=True, nw_dst="10.2.0.0/24", dl_dst=ROUTER, reg13=(0, 1)),
            act.dec_ttl(), act.set_field("eth_src", ROUTER), act.move("ip_dst", "xxreg0[0..31]"),
            act.set_field("reg2", 0xFFFF), act.set_field("xreg0", 0), act.set_field("reg13", 2, mask=2),
            act.resubmit(35),
        ),
        f"table=30,metadata=0x1/0xffffffff,ip,nw_dst=10.2.0.0/24,priority=49,dl_dst={ROUTER},reg13=0/1 "
        f"actions=dec_ttl,set_field:{ROUTER}->eth_src,move:OXM_OF_IPV4_DST[]->NXM_NX_XXREG0[0..31],"
        "set_field:0xffff->reg2,set_field:0->xreg0,set_field:2/2->reg13,resubmit(,35)",
    ),
    (
        flow(
            30, 1000, match(metadata=(1, DOMAIN), reg13=(0, 1), icmp=True, icmp_type=8, nw_dst="10.2.0.1"),
            act.move("ip_src", "ip_dst"), act.set_field("ip_src", "10.2.0.1"), act.set_field("icmp_type", 0),
            act.set_field("nw_ttl", 64), act.to_in_port(),
        ),
        "table=30,priority=1000,metadata=0x1/0xffffffff,reg13=0/1,icmp,icmp_type=8,nw_dst=10.2.0.1 "
        "actions=move:OXM_OF_IPV4_SRC[]->OXM_OF_IPV4_DST[],set_field:10.2.0.1->ip_src,set_field:0->icmp_type,"
        "set_field:64->nw_ttl,IN_PORT",
    ),
    (
        flow(30, 128, match(ipv6=True, ipv6_dst="fd00:2::/64"), act.move("ipv6_dst", "xxreg0"), act.resubmit(35)),
        "table=30,priority=128,ipv6,ipv6_dst=fd00:2::/64 actions=move:NXM_NX_IPV6_DST[]->NXM_NX_XXREG0[],resubmit(,35)",
    ),
    (
        flow(35, 95, match(metadata=(1, DOMAIN_COLOR), ip=True, nw_dst="10.2.0.0/24"), act.group(2)),
        "table=35,priority=95,metadata=0x1/0xffffffffff,ip,nw_dst=10.2.0.0/24 actions=group:2",
    ),
    (
        flow(
            35, 97, match(ip=True, metadata=(1, DOMAIN_COLOR), reg13=(34, 34)),
            act.ct(flags=act.CT_COMMIT, zone="reg11[0..15]", actions=act.set_field("ct_mark", 0xFF)),
            act.set_field("reg13", 0, mask=16), act.clone(FIRST), act.clone(SECOND),
        ),
        "table=35,priority=97,ip,metadata=0x1/0xffffffffff,reg13=34/34 "
        "actions=ct(commit,zone=NXM_NX_REG11[0..15],exec(set_field:0xff->ct_mark)),set_field:0/16->reg13,"
        "clone(set_field:0x100000000/0xff00000000->metadata,resubmit(,36)),"
        "clone(set_field:0x200000000/0xff00000000->metadata,resubmit(,36))",
    ),
    (
        flow(
            45, 80, match(reg4=0, reg13=(8, 8), ipv6=True), act.ct_clear(), act.ct(table=50, zone="reg11[16..31]"),
        ),
        "table=45,priority=80,reg4=0,reg13=8/8,ipv6 actions=ct_clear,ct(table=50,zone=NXM_NX_REG11[16..31])",
    ),
    (
        flow(
            50, 95, match(ct_state="+trk-new", ct_mark=(0xFF, 0xFF), ip=True),
            act.ct(flags=act.CT_COMMIT, zone="reg11[16..31]", actions=TO_MARK), act.resubmit(60),
        ),
        "table=50,priority=95,ct_state=+trk-new,ct_mark=0xff/0xff,ip actions=ct(commit,zone=NXM_NX_REG11[16..31],"
        "exec(move:OXM_OF_METADATA[32..39]->NXM_NX_CT_MARK[0..7])),resubmit(,60)",
    ),
    (
        flow(60, 10, match(reg4=0), act.move("xreg4[0..47]", "eth_dst"), act.output_reg("reg5")),
        "table=60,priority=10,reg4=0 actions=move:OXM_OF_PKT_REG4[0..47]->OXM_OF_ETH_DST[],output:NXM_NX_REG5[]",
    ),
    (
        flow(62, 10, match(reg4=1), act.set_field("tun_dst", "192.0.2.1"), act.output(1)),
        "table=62,priority=10,reg4=1 actions=set_field:192.0.2.1->tun_dst,output:1",
    ),
    (
        flow(61, 10, match(reg4=1), act.set_field("tun_ipv6_dst", "fd00::9"), act.set_field("tun_id", 7)),
        "table=61,priority=10,reg4=1 actions=set_field:fd00::9->tun_ipv6_dst,set_field:7->tun_id",
    ),
    # Beyond the prototype.
    (
        flow(70, 1, match(conj_id=5, ip=True), act.check_pkt_larger(1514, "reg13[6]"), act.output_reg("xreg2[3..18]")),
        "table=70,priority=1,conj_id=5,ip "
        "actions=check_pkt_larger(1514)->NXM_NX_REG13[6],output:OXM_OF_PKT_REG2[3..18]",
    ),
    (
        flow(35, 75, match(reg13=(16, 0x71)), act.multipath("nw_src", slots=256, into="reg12[0..7]"), act.resubmit(37)),
        "table=35,priority=75,reg13=16/0x71 "
        "actions=multipath(nw_src,0,modulo_n,256,0,NXM_NX_REG12[0..7]),resubmit(,37)",
    ),
    (
        flow(35, 76, b"", act.multipath("symmetric_l3l4+udp", slots=256, into="reg12[0..7]"), act.group(5)),
        "table=35,priority=76 actions=multipath(symmetric_l3l4+udp,0,modulo_n,256,0,NXM_NX_REG12[0..7]),group:5",
    ),
    (
        flow(70, 2, match(udp6=True, udp_dst=(0x1000, 0xF000)), act.conjunction(5, 1, 3), act.conjunction(6, 2, 2)),
        "table=70,priority=2,udp6,udp_dst=0x1000/0xf000 actions=conjunction(5,1/3),conjunction(6,2/2)",
    ),
    (
        flow(
            70, 3, match(ip=True, nw_frag="later", nw_ttl=1, ct_zone=9, dl_dst=(0, 1 << 40)),
            act.ct(flags=act.CT_COMMIT | act.CT_FORCE, zone=9, table=71),
        ),
        "table=70,priority=3,ip,nw_frag=later,nw_ttl=1,ct_zone=9,dl_dst=00:00:00:00:00:00/01:00:00:00:00:00 "
        "actions=ct(commit,force,zone=9,table=71)",
    ),
    (flow(70, 4, match(dl_type=0x88CC, vlan_tci=(0x1000, 0x1000))),
     "table=70,priority=4,dl_type=0x88cc,vlan_tci=0x1000/0x1000 actions=drop"),
    (flow(70, 5, match(ip=True, nw_proto=47, reg15=1, pkt_mark=(1, 1))),
     "table=70,priority=5,ip,nw_proto=47,reg15=1,pkt_mark=1/1 actions=drop"),
]  # fmt: skip

GROUPS: list[tuple[Group, str]] = [
    (
        issued_group(
            2, GroupKind.SELECT, selection_method="dp_hash",
            buckets=[Bucket(FIRST, 242), Bucket(FIRST, 1), Bucket(SECOND, 13)],
        ),
        "group_id=2,type=select,selection_method=dp_hash,"
        "bucket=bucket_id:0,weight:242,actions=set_field:0x100000000/0xff00000000->metadata,resubmit(,36),"
        "bucket=bucket_id:1,weight:1,actions=set_field:0x100000000/0xff00000000->metadata,resubmit(,36),"
        "bucket=bucket_id:2,weight:13,actions=set_field:0x200000000/0xff00000000->metadata,resubmit(,36)",
    ),
    (
        issued_group(
            3, GroupKind.SELECT, selection_method="hash", fields=("ipv6_src", "ip_src"), buckets=[Bucket(FIRST, 1)]
        ),
        "group_id=3,type=select,selection_method=hash,fields(ip_src,ipv6_src),"
        "bucket=bucket_id:0,weight:1,actions=set_field:0x100000000/0xff00000000->metadata,resubmit(,36)",
    ),
    (
        issued_group(4, GroupKind.ALL, buckets=[Bucket(act.output(1)), Bucket(b"")]),
        "group_id=4,type=all,bucket=bucket_id:0,actions=output:1,bucket=bucket_id:1,actions=drop",
    ),
    (
        issued_group(5, GroupKind.INDIRECT, buckets=[Bucket(act.dec_ttl() + act.resubmit(9))]),
        "group_id=5,type=indirect,bucket=bucket_id:0,actions=dec_ttl,resubmit(,9)",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def bridges() -> Iterator[Sandbox]:
    """Two bridges: "ours" is filled by our driver, "theirs" by ovs-ofctl."""
    with Sandbox() as ovs:
        ovs.add_bridge("ours")
        ovs.add_bridge("theirs")
        yield ovs


async def written_and_read(ovs: Sandbox, write: dict[Key, Value]) -> dict[Key, Value]:
    """What the bridge "ours" has after it was emptied and filled."""
    async with connected(ovs.mgmt("ours"), run_dir=ovs.run_dir) as driver:
        before = await driver.read()
        assert await driver.apply(write, before.keys() - write.keys()) == {}
        return await driver.read()


async def test_prototype(bridges: Sandbox) -> None:
    write: dict[Key, Value] = {each.cookie: each for each, _ in GOLDEN}
    write |= {each.key: each for each, _ in GROUPS}
    assert await written_and_read(bridges, write) == write
    for _, text in GROUPS:
        bridges.ofctl("--may-create mod-group", "theirs", text)
    bridges.ofctl("del-flows", "theirs")
    bridges.ofctl("add-flows", "theirs", "-", text="\n".join(text for _, text in GOLDEN))
    ours, theirs = bridges.flows("ours"), bridges.flows("theirs")
    assert ours == theirs
    assert len(ours) == len(GOLDEN)
    assert groups_of(bridges, "ours") == groups_of(bridges, "theirs")


def groups_of(ovs: Sandbox, bridge: str) -> list[str]:
    return sorted(ovs.ofctl("dump-groups", bridge).splitlines()[1:])


async def test_base_flows_and_their_text(bridges: Sandbox) -> None:
    await same_by_text(bridges, list(base_flows()))


async def test_text_of_the_prototype(bridges: Sandbox) -> None:
    await same_by_text(bridges, [each for each, _ in GOLDEN])


async def same_by_text(ovs: Sandbox, flows: list[Flow]) -> None:
    """They read back as what they are, and `flow_text`, given to ovs-ofctl, makes the same flows."""
    write: dict[Key, Value] = {each.cookie: each for each in flows}
    write |= {each.key: each for each, _ in GROUPS}
    assert await written_and_read(ovs, write) == write
    for _, text in GROUPS:
        ovs.ofctl("--may-create mod-group", "theirs", text)
    ovs.ofctl("del-flows", "theirs")
    ovs.ofctl("add-flows", "theirs", "-", text="\n".join(map(flow_text, flows)))
    assert ovs.flows("ours", cookies=True) == ovs.flows("theirs", cookies=True)
