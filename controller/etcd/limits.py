"""What one transaction of this etcd may hold.

Etcd does not tell its `--max-txn-ops`, but refuses a list that is longer; compares, operations of `then` and of
`orelse` count separately (measured on 3.4.23: 128 + 128 accepted, 129 compares refused). A transaction of compares only
changes nothing, so it can be used to find out.
"""

from __future__ import annotations

from controller.etcd.client import Etcd
from controller.etcd.errors import StoreRefused
from controller.etcd.types import absent

ENOUGH = 4096
"""What the embedded etcd is started with; more is never needed, so it is not looked for."""

_KEY = b"/tealnet/probe"


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
