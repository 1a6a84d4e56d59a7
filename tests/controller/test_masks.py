"""Updates edit the stored message: masks, and fields that only a newer controller knows."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controller.errors import Invalid
from controller.masks import OUTPUT, Policy, merge, paths_of
from tealnet.v1 import network_pb2, port_pb2, tenant_pb2

POLICY = Policy(output=OUTPUT | {"status"}, fixed=frozenset({"network"}), chosen=frozenset({"addresses", "mac"}))


def merged(stored: port_pb2.Port, body: port_pb2.Port, *paths: str) -> port_pb2.Port:
    result = port_pb2.Port()
    result.CopyFrom(stored)
    found = paths_of(FieldMask(paths=paths), body, POLICY)
    merge(result, body, paths=found, policy=POLICY, prefix="port")
    return result


STORED = port_pb2.Port(
    description="old",
    host="hosts/h1",
    network="tenants/a/networks/n",
    mac="02:00:00:00:00:01",
    addresses=["10.0.0.5"],
    labels={"a": "1", "b": "2"},
    attachment={"namespace": "ns", "interface": "eth0"},
)


def test_without_a_mask_what_is_populated_counts() -> None:
    result = merged(STORED, port_pb2.Port(name="ignored", description="new"))
    assert (result.description, result.host) == ("new", "hosts/h1")


def test_a_field_of_the_mask_that_is_empty_is_reset() -> None:
    result = merged(STORED, port_pb2.Port(), "host", "labels", "attachment.namespace", "mac", "addresses")
    assert result.host == "" and not result.labels
    assert (result.attachment.namespace, result.attachment.interface) == ("", "eth0")
    assert result.mac and result.addresses  # the server's choice is kept


def test_all_fields() -> None:
    result = merged(STORED, port_pb2.Port(description="new"), "*")
    assert (result.description, result.host, dict(result.labels)) == ("new", "", {})
    assert result.network == STORED.network and result.mac == STORED.mac


def test_one_label() -> None:
    result = merged(STORED, port_pb2.Port(labels={"x.dev/y": "3"}), "labels.x.dev/y", "labels.a")
    assert dict(result.labels) == {"b": "2", "x.dev/y": "3"}


@pytest.mark.parametrize(
    "path", ["nonsense", "uid", "status", "description.x", "attachment.nonsense", "addresses.0", ".", "", "*.x"]
)
def test_paths_that_are_refused(path: str) -> None:
    with pytest.raises(Invalid) as caught:
        merged(STORED, port_pb2.Port(), path)
    assert caught.value.violations[0].field == "update_mask"


def test_what_is_fixed() -> None:
    merged(STORED, port_pb2.Port(network=STORED.network), "network")
    with pytest.raises(Invalid) as caught:
        merged(STORED, port_pb2.Port(network="tenants/a/networks/m"), "network")
    assert caught.value.violations[0].field == "port.network"


def test_fields_of_a_newer_controller_survive() -> None:
    """A15: bytes of a field that this build does not know stay in the stored message."""
    newer = STORED.SerializeToString() + b"\xa2\x3e\x05guard"  # field 996, a string
    stored = port_pb2.Port.FromString(newer)
    result = merged(stored, port_pb2.Port(description="new"), "description")
    assert b"guard" in result.SerializeToString(deterministic=True)


def test_well_known_types_are_whole() -> None:
    stored, body = network_pb2.Network(address_quarantine={"seconds": 5}), network_pb2.Network()
    with pytest.raises(Invalid):
        merge(stored, body, paths=["address_quarantine.seconds"], policy=Policy(), prefix="network")
    merge(stored, body, paths=["address_quarantine"], policy=Policy(), prefix="network")
    assert not stored.HasField("address_quarantine")


@pytest.mark.parametrize("path", ["labels.", "network.name", "mac.x", "addresses.0"])
def test_paths_of_nothing(path: str) -> None:
    with pytest.raises(Invalid):
        merged(STORED, port_pb2.Port(), path)


def test_labels_do_not_grow_for_ever_one_by_one() -> None:
    body = port_pb2.Port(labels={f"k{n}": "v" for n in range(63)})
    paths = [f"labels.k{n}" for n in range(63)]
    assert len(merged(STORED, body, *paths[:62]).labels) == 64
    with pytest.raises(Invalid) as error:
        merged(STORED, body, *paths)
    assert error.value.violations[0].field == "port.labels"
    selector = {f"k{n}": "v" for n in range(65)}
    with pytest.raises(Invalid) as error:
        merge(
            tenant_pb2.Tenant(),
            tenant_pb2.Tenant(placement={"host_selector": selector}),
            paths=["placement"],
            policy=Policy(),
            prefix="tenant",
        )
    assert error.value.violations[0].field == "tenant.placement.host_selector"
