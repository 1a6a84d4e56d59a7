"""What is wanted on this host, per layer: the union of what all features want.

An object's owner is the resource (or the fact) whose derived row wants it: a failure at a device key is reported as a
failure of its owners.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from tealnet.core.tables import Derived

Pairs = tuple[tuple[Hashable, Any], ...]  # (device key, device object)

LAYERS = ("netns", "link", "guard", "ovsdb", "address", "flow")  # create left to right, delete right to left


@dataclass(frozen=True, slots=True)
class Wants:
    """A derived table of a feature whose rows are tuples of (device key, device object) for one layer.

    `kind` says whose failure it is: the resource key of a row is `<kind>/<row key>` ("localport" where the table is
    derived over local ports, "segment" over segments …). "" = nobody's: shown in the agent's own status only.
    """

    layer: str
    table: Derived[Any, Pairs]
    kind: str = ""
