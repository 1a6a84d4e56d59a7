"""What can go wrong between the controller and etcd.

The classes answer the one question a caller has: was it applied? `StoreUnavailable`, `StoreRefused` and what derives
from them: no. `OutcomeUnknown`: perhaps; read the object back (its `write_id` tells) before trying again.
"""

from __future__ import annotations


class StoreError(Exception):
    """Base of all errors of the etcd client."""


class StoreUnavailable(StoreError):
    """No endpoint answered within the deadline, and nothing was applied."""


class OutcomeUnknown(StoreError):
    """A write was sent and no answer came back: it may have been applied, or may still be."""


class StoreRefused(StoreError):
    """Etcd understood the request and said no; nothing was applied.

    `code` is the name of the gRPC status, `reason` etcd's own words (for people and logs).
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"etcd refused the request: {reason} ({code})")
        self.code = code
        self.reason = reason


class TxnTooLarge(StoreRefused):
    """A transaction has more operations, compares or bytes than this etcd takes; split it.

    `operations` is the longest of its lists, `size` its length in bytes.
    """

    def __init__(self, *, operations: int, size: int, reason: str) -> None:
        super().__init__("TXN_TOO_LARGE", f"{reason}; {operations} operations, {size} bytes")
        self.operations = operations
        self.size = size


class StoreTooOld(StoreError):
    """A member's version is one that the controller does not work with."""


class StoreFull(StoreRefused):
    """Etcd has used up its space quota (alarm NOSPACE): compact, defragment, then disarm the alarm."""


class LeaseNotFound(StoreRefused):
    """The lease that was named has expired or was revoked."""


class Compacted(StoreError):
    """The revision asked for is no longer kept: read everything again at one revision.

    `compact_revision` is the lowest revision that can still be read, 0 if etcd did not say.
    """

    def __init__(self, compact_revision: int) -> None:
        super().__init__(f"revisions below {compact_revision or 'an unknown one'} are compacted")
        self.compact_revision = compact_revision


class HistoryLost(StoreError):
    """The store is behind a revision that it had already told, or is another cluster: restored or replaced.

    `revision` is the store's now, `expected` the one it had told. Read everything again, after the lineage was checked.
    """

    def __init__(self, *, revision: int, expected: int) -> None:
        super().__init__(f"etcd is at revision {revision}, but had told revision {expected}: another history")
        self.revision = revision
        self.expected = expected
