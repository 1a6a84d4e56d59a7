"""What all tests share."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.controller.shared import stop_shared
from tests.samples import samples

# No limit of time for an example: it would tell how busy the machine is.
settings.register_profile(
    "tealnet", deadline=None, max_examples=samples(100, many=2000), suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("tealnet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes samples is marked, for `make test-long`."""
    for item in items:
        if item.get_closest_marker("hypothesis"):
            item.add_marker("long")


def pytest_sessionfinish() -> None:
    """The etcd that tests share ends with them."""
    stop_shared()
