"""What went wrong elsewhere, and the test that keeps it from going wrong here: one entry for each row of the study.

`PROVED` names the tests, `REASONS` says why a row can't apply. Both are checked to be complete, and the tests to exist;
docs/security.md has the same table for people.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from controller.errors import Invalid
from controller.features.l2_check import attachment_shape, network_fields, port_fields
from controller.fields import Violations
from controller.rows import Attach
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.core.rows.parse import BadResource
from tealnet.core.rows.stream import decode
from tealnet.v1 import network_pb2, port_pb2

ROOT = Path(__file__).parents[2]
ROWS = range(1, 18)

PROVED: dict[int, tuple[str, ...]] = {
    1: (
        "tests/lab/test_isolation.py::test_nothing_of_any_tenant_reaches_a_port_of_another",
        "tests/ovs/test_pipeline_hostile.py::test_prefixes_to_send_from_open_nothing_else",
    ),
    2: (
        "tests/lab/test_isolation.py::test_a_workload_reaches_neither_underlay_nor_management",
        "tests/lab/test_isolation.py::test_forged_tunnel_packets_are_not_delivered",
    ),
    3: (
        "tests/lab/test_isolation.py::test_nothing_of_any_tenant_reaches_a_port_of_another",
        "tests/ovs/test_pipeline_hostile.py::test_an_odd_packet_goes_where_its_address_says_and_nowhere_else",
    ),
    4: (
        "tests/lab/test_isolation.py::test_nothing_of_any_tenant_reaches_a_port_of_another",
        "tests/ovs/test_pipeline_hostile.py::test_a_hostile_frame_is_dropped",
    ),
    5: (
        "tests/lab/test_isolation.py::test_no_lie_passes",
        "tests/ovs/test_pipeline_hostile.py::test_a_hostile_frame_is_dropped",
    ),
    6: (
        "tests/lab/test_isolation.py::test_nothing_of_any_tenant_reaches_a_port_of_another",
        "tests/lab/test_isolation.py::test_no_lie_passes",
    ),
    7: (
        "tests/lab/test_isolation.py::test_no_lie_passes",
        "tests/agent/drivers/test_guard.py::test_nothing_reaches_the_host",
    ),
    8: (
        "tests/agent/test_reconcile.py::test_a_poison_port_fails_alone_with_a_reason_and_heals",
        "tests/lab/test_agent.py::test_a_poison_port_fails_alone_and_heals",
    ),
    9: (
        "tests/ovs/test_pipeline.py::test_a_port_is_closed_until_number_and_guard_are_confirmed",
        "tests/agent/test_reconcile.py::test_any_history_converges_whatever_is_interrupted",
    ),
    10: ("tests/lab/test_isolation.py::test_nothing_foreign_is_seen_during_any_change",),
    11: (
        "tests/security/test_cves.py::test_no_text_of_a_tenant_can_mean_more_than_a_name",
        "tests/security/test_cves.py::test_an_agent_believes_no_controller_about_names_either",
    ),
    12: (
        "tests/security/test_authorisation.py::test_every_method_by_every_caller_about_everybody",
        "tests/security/test_authorisation.py::"
        "test_a_field_that_names_what_is_foreign_is_answered_as_if_it_were_not_there",
    ),
    14: (
        "tests/security/test_cves.py::test_what_is_empty_is_not_everything",
        "tests/lab/test_isolation.py::test_nothing_foreign_is_seen_during_any_change",
        "tests/agent/test_reconcile.py::test_nothing_is_touched_before_the_inputs_are_whole",
    ),
    15: (
        "tests/lab/test_isolation.py::test_nothing_foreign_is_seen_during_any_change",
        "tests/agent/test_reconcile.py::test_layers_are_made_left_to_right_and_deleted_right_to_left",
    ),
    16: (
        "tests/lab/test_isolation.py::test_no_lie_passes",
        "tests/agent/drivers/test_guard.py::test_nothing_reaches_the_host",
    ),
    17: (
        "tests/security/test_store_access.py::test_the_embedded_store_is_behind_a_door_that_only_its_user_opens",
        "tests/security/test_store_access.py::test_a_cluster_knows_no_certificate_of_ours",
    ),
}

REASONS = {
    13: "There is no encrypted mode: nobody is promised what could silently be missing. Who may send into tunnels is "
    "proved by tests/lab/test_isolation.py::test_forged_tunnel_packets_are_not_delivered.",
}


@cache
def functions(path: Path) -> set[str]:
    return {
        node.name for node in ast.walk(ast.parse(path.read_text())) if hasattr(node, "args") and hasattr(node, "name")
    }


def test_each_row_has_its_test_or_a_reason() -> None:
    assert sorted([*PROVED, *REASONS]) == list(ROWS)
    for name in {name for names in PROVED.values() for name in names}:
        path, _, function = name.partition("::")
        assert function in functions(ROOT / path), name


def test_the_document_has_the_same_table() -> None:
    text = (ROOT / "docs" / "security.md").read_text()
    shown = {int(row[1]): row[2] for row in re.finditer(r"^\| (\d+) \|.*\| ([^|]*) \|$", text, re.M)}
    assert sorted(shown) == list(ROWS)
    for row, names in PROVED.items():
        for name in names:
            assert name.partition("::")[2] in shown[row], f"row {row}: {name}"


# ---- row 11: a text that becomes part of something else

HOSTILE = [
    "a\nb", "a\rb", "a\x00b", "a b", "a;b", "a|b", "a&b", "$(a)", "`a`", "a'b", 'a"b', "a\\b", "a/b", "../a", "a/../b",
    "-a", "--a", "a,b", "a=b", "a{b", "a}b", "a*", "a?", "a#b", "a%b", "a\u2028b", "a\u202eb", "\uff41", "a\n", "\na",
    "", " ", ".", "..", "a" * 300, "ovs-vsctl del-br br-int", "eth0 type patch", "a\tb", "~a", "{{a}}", "%(a)s", "${a}",
]  # fmt: skip


def refused(message: Any, check: Callable[[Any, Violations], None]) -> bool:
    found = Violations("x")
    check(message, found)
    try:
        found.finish()
    except Invalid:
        return True
    return False


@pytest.mark.parametrize("text", HOSTILE, ids=repr)
def test_no_text_of_a_tenant_can_mean_more_than_a_name(text: str) -> None:
    """CVE-2021-40085: a newline in a text that goes into a file. Here none gets so far."""
    for field in ("namespace", "interface", "device", "path"):
        port = port_pb2.Port(attachment=port_pb2.Attachment(**{field: text}))
        assert not text or refused(port, port_fields), field
    for port in (
        port_pb2.Port(network=text), port_pb2.Port(host=text), port_pb2.Port(mac=text),
        port_pb2.Port(addresses=[text]), port_pb2.Port(allowed_addresses=[text]), port_pb2.Port(labels={text: "x"}),
        port_pb2.Port(labels={"x": text}),
    ):  # fmt: skip
        assert not text or refused(port, port_fields) or _is_label(port, text), port
    for network in (
        network_pb2.Network(cidrs=[text]), network_pb2.Network(gateways=[text]), network_pb2.Network(router=text),
        network_pb2.Network(reserved_ranges=[text]), network_pb2.Network(dns=network_pb2.Dns(servers=[text])),
        network_pb2.Network(dns=network_pb2.Dns(search_domains=[text])),
    ):  # fmt: skip
        assert (not text and network.router == "" and not network.ByteSize()) or refused(network, network_fields), (
            network
        )


def _is_label(port: port_pb2.Port, text: str) -> bool:
    """A value that a label may well have; labels go nowhere but into answers."""
    return bool(port.labels) and re.fullmatch(r"[A-Za-z0-9./_-]*", text) is not None


@pytest.mark.parametrize("text", [text for text in HOSTILE if text], ids=repr)
def test_an_agent_believes_no_controller_about_names_either(text: str) -> None:
    """What becomes the name of a namespace, device, file or OVSDB row is checked on the host, too."""
    key, body = _localport()
    for change in (
        {"tenant": text}, {"name": text}, {"attachment": {"where": text}}, {"attachment": {"interface": text}},
        {"attachment": {"kind": pb.LocalAttachment.KIND_DEVICE, "where": text}},
        {"attachment": {"kind": pb.LocalAttachment.KIND_NETNS_PATH, "where": text}},
    ):  # fmt: skip
        message = pb.LocalPort.FromString(body)
        message.MergeFrom(pb.LocalPort(**change))
        with pytest.raises(BadResource):
            decode(key, message.SerializeToString())
    with pytest.raises(BadResource):
        decode(f"localport/{text}", body)


def _localport() -> tuple[str, bytes]:
    where = pb.LocalAttachment(kind=pb.LocalAttachment.KIND_NETNS, where="web", interface="eth0")
    message = pb.LocalPort(
        vni=5000, addresses=[bytes((10, 0, 0, 5))], mac=bytes((2, 0, 0, 0, 0, 1)), tenant="acme", name="web",
        attachment=where,
    )  # fmt: skip
    key = f"localport/{'a' * 32}"
    assert decode(key, message.SerializeToString())
    return key, message.SerializeToString()


# ---- row 14: an empty list that means all


def test_what_is_empty_is_not_everything() -> None:
    """CVE-2025-64715: an empty list that was left out on the wire, and then allowed all."""
    key, body = _localport()
    message = pb.LocalPort.FromString(body)
    assert decode(key, body).sources == ()  # type: ignore[union-attr]
    del message.addresses[:]
    with pytest.raises(BadResource):
        decode(key, message.SerializeToString())
    for field in ("mac", "vni", "tenant", "name", "attachment"):
        message = pb.LocalPort.FromString(body)
        message.ClearField(field)
        with pytest.raises(BadResource):
            decode(key, message.SerializeToString())
    found = Violations("port")
    attachment_shape(port_pb2.Attachment(), Attach.DEVICE, found)
    assert found.found, "a device without a name"
