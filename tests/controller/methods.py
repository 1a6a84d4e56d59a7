"""Every method of the public API, found in the generated modules: a new service is in the tests by being there."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import tealnet.v1

MODULES = tuple(
    importlib.import_module(f"tealnet.v1.{found.name}")
    for found in pkgutil.iter_modules(tealnet.v1.__path__)
    if found.name.endswith("_pb2")
)
METHODS: dict[str, Any] = {
    f"/{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Descriptors by full name: /tealnet.v1.PortService/CreatePort."""
