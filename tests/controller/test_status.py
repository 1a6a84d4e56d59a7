"""State as it is computed when it is read: rows in, words out."""

from __future__ import annotations

import pytest

from controller.status import Status
from tests.controller.deriving import MAKE, Derivation

WEB = "tenants/acme/networks/web"


def status_of(derivation: Derivation) -> Status:
    return Status(derivation.world, derivation.resources, lambda _: 0, default_mtu=1430)


@pytest.mark.parametrize("room", [10, 30, 70, 100, 250])
def test_addresses_are_low_from_exactly_nine_in_ten(room: int) -> None:
    """Also where a tenth of all is no binary fraction."""
    kept = f"10.0.0.{room + 2}-10.0.0.254"  # beside the network's own, gateway and broadcast
    derivation = Derivation().put(MAKE.network(WEB, 1, ["10.0.0.0/24"], reserved_ranges=[kept]))

    def conditions() -> list[str]:
        return [condition.type for condition in status_of(derivation.settle()).network(WEB).conditions]

    for n in range(9 * room // 10 - 1):
        derivation.put(MAKE.port(f"tenants/acme/ports/p{n}", WEB, [f"10.0.0.{n + 2}"]))
    assert conditions() == []
    derivation.put(MAKE.port("tenants/acme/ports/last", WEB, [f"10.0.0.{9 * room // 10 + 1}"]))
    assert conditions() == ["AddressesLow"]
