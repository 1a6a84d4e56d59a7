"""Whatever our encoder can say, the switch gives back as it was, and ovs-ofctl says the same by our own text of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent.drivers.openflow import Key, Value
from agent.openflow import actions as act
from agent.openflow.flow import Flow
from agent.openflow.oxm import FIELDS, Field, match
from agent.openflow.text import flow_text
from tests.ovs.sandbox import Sandbox, connected

pytestmark = pytest.mark.ovs


@pytest.fixture(scope="module")
def bridges() -> Iterator[Sandbox]:
    """Two bridges: "ours" is filled by our driver, "theirs" by ovs-ofctl."""
    with Sandbox() as ovs:
        ovs.add_bridge("ours")
        ovs.add_bridge("theirs")
        yield ovs


def numbers(target: Field) -> st.SearchStrategy[tuple[int, int]]:
    """(value, mask) for a field."""
    full = (1 << target.bits) - 1
    masks = st.integers(0, target.bits).map(lambda n: full >> n << n)
    if target.kind != "ipv6":  # ovs-ofctl takes the start of some IPv6 masks ("0:0:0:1::") for a prefix length
        masks = st.one_of(st.just(full), st.integers(0, full), masks)
    return st.tuples(st.integers(0, full), masks).map(lambda pair: (pair[0] & pair[1], pair[1]))


UNMASKED = {"conj_id", "in_port", "ct_zone", "nw_ttl", "icmp_type", "icmp_code", "icmpv6_type", "icmpv6_code", "arp_op"}
KINDS: dict[str, list[str]] = {
    "": ["in_port", "tun_id", "tun_src", "tun_dst", "tun_ipv6_dst", "ct_state", "ct_mark", "ct_label", "metadata"],
    "ip": ["ip_src", "ip_dst", "nw_ttl", "eth_src", "eth_dst", "ct_zone", "reg3", "reg14"],
    "ipv6": ["ipv6_src", "ipv6_dst", "nw_ttl", "xxreg1", "reg0", "conj_id"],
    "tcp": ["tcp_src", "tcp_dst", "tcp_flags", "ip_src", "xreg7"],
    "udp6": ["udp_src", "udp_dst", "ipv6_dst", "pkt_mark"],
    "icmp": ["icmp_type", "icmp_code", "ip_dst"],
    "arp": ["arp_op", "arp_spa", "arp_tpa", "arp_sha", "arp_tha", "eth_src"],
}


@st.composite
def matches(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(sorted(KINDS)))
    fields: dict[str, tuple[int, int] | int] = {kind: 1} if kind else {}
    for name in draw(st.lists(st.sampled_from(KINDS[kind]), unique=True)):
        value, mask = draw(numbers(FIELDS[name]))
        if name == "ct_state":
            value, mask = value & 0xFF, mask & 0xFF
            # Without "tracked" nothing else can be matched.
            value, mask = (value | 0x20, mask | 0x20) if mask else (value, mask)
        fields[name] = value & 0xFF if name in UNMASKED else (value, mask)
    return match(**fields)


WRITABLE = ["eth_dst", "tun_id", "tun_dst", "metadata", "reg0", "reg15", "xreg3", "xxreg2", "pkt_mark"]


@st.composite
def action_lists(draw: st.DrawFn, depth: int = 2) -> bytes:
    out = b""
    for kind in draw(st.lists(st.sampled_from(["set", "move", "ct", "clone", "resubmit", "output"]), max_size=4)):
        if kind == "set":
            name = draw(st.sampled_from(WRITABLE))
            value, mask = draw(numbers(FIELDS[name]))
            out += act.set_field(name, value, mask=mask or None)
        elif kind == "move":
            n_bits = draw(st.integers(1, 32))
            slices = [f"{draw(st.sampled_from(WRITABLE[1:2] + WRITABLE[3:]))}[0..{n_bits - 1}]" for _ in range(2)]
            out += act.move(*slices)
        elif kind == "ct":
            zone = draw(st.one_of(st.integers(0, 65535), st.just("reg11[16..31]")))
            table = draw(st.one_of(st.none(), st.integers(0, 250)))
            out += act.ct(zone=zone, table=table, flags=act.CT_COMMIT, actions=act.set_field("ct_mark", 1))
        elif kind == "clone" and depth:
            out += act.clone(draw(action_lists(depth=depth - 1)) or act.resubmit(1))
        else:
            out += act.resubmit(draw(st.integers(0, 250))) if kind == "resubmit" else act.output_reg("reg5")
    return out


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    contents=st.lists(st.tuples(matches(), action_lists()), min_size=1, max_size=30),
)
async def test_whatever_we_can_say(bridges: Sandbox, contents: list[tuple[bytes, bytes]]) -> None:
    # A table each, so that none replaces another. The switch refuses some: ct without a match on IP, for one.
    flows = [Flow(number, 5, match_, actions, 1) for number, (match_, actions) in enumerate(contents)]
    write: dict[Key, Value] = {each.cookie: each for each in flows}
    async with connected(bridges.mgmt("ours"), run_dir=bridges.run_dir) as driver:
        before = await driver.read()
        failures = await driver.apply(write, before.keys() - write.keys())
        taken = {key: value for key, value in write.items() if key not in failures}
        assert await driver.read() == taken
    bridges.ofctl("del-flows", "theirs")
    text = "\n".join(flow_text(each) for each in flows if each.cookie in taken)
    bridges.ofctl("add-flows", "theirs", "-", text=text)
    assert bridges.flows("ours", cookies=True) == bridges.flows("theirs", cookies=True)
