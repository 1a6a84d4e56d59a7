"""What one transaction of this etcd may hold, and whether it is new enough at all.

Etcd does not tell its `--max-txn-ops`, but refuses a list that is longer; compares, operations of `then` and of
`orelse` count separately (measured on 3.4.23: 128 + 128 accepted, 129 compares refused). A transaction of compares only
changes nothing, so it can be used to find out.
"""

from __future__ import annotations

import re

from controller.etcd.client import Etcd
from controller.etcd.errors import StoreRefused, StoreTooOld
from controller.etcd.types import absent

ENOUGH = 4096
"""What the embedded etcd is started with; more is never needed, so it is not looked for."""

_KEY = b"/tealnet/probe"
OLDEST = (3, 4)
"""Nested transactions and leases work as we need them from here on; all of it is tested on 3.4."""


async def check_version(etcd: Etcd) -> None:
    """The member that answers must be new enough. Raises StoreTooOld, StoreUnavailable."""
    status = await etcd.status()
    found = re.match(r"(\d+)\.(\d+)", status.version)
    if found and (int(found[1]), int(found[2])) < OLDEST:
        needed = ".".join(map(str, OLDEST))
        text = f"etcd at {status.endpoint} is {status.version}: the controller works with {needed} and newer"
        raise StoreTooOld(text)


async def max_txn_ops(etcd: Etcd) -> int:
    """The longest list of compares or operations that this etcd takes in a transaction, at most `ENOUGH`.

    One round trip if it is at least that, else about twelve. Raises StoreUnavailable.
    """
    if await _accepts(etcd, ENOUGH):
        return ENOUGH
    known, refused = 1, ENOUGH
    while refused - known > 1:
        middle = 128 if known < 128 < refused and refused == ENOUGH else (known + refused) // 2
        known, refused = (middle, refused) if await _accepts(etcd, middle) else (known, middle)
    return known


async def _accepts(etcd: Etcd, operations: int) -> bool:
    try:
        await etcd.txn([absent(_KEY)] * operations, ())
    except StoreRefused:
        return False
    return True
