"""Our own thin etcd client; users import from here."""

from controller.etcd.client import Etcd
from controller.etcd.errors import (
    Compacted,
    HistoryLost,
    LeaseNotFound,
    OutcomeUnknown,
    StoreError,
    StoreFull,
    StoreRefused,
    StoreTooOld,
    StoreUnavailable,
    TxnTooLarge,
)
from controller.etcd.lease import Lease
from controller.etcd.links import Tls

__all__ = [
    "Compacted",
    "Etcd",
    "HistoryLost",
    "Lease",
    "LeaseNotFound",
    "OutcomeUnknown",
    "StoreError",
    "StoreFull",
    "StoreRefused",
    "StoreTooOld",
    "StoreUnavailable",
    "Tls",
    "TxnTooLarge",
]
