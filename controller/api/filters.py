"""Pages, and how fresh a read must be; selectors are `selectors`'."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from hashlib import blake2b

from controller.errors import OutOfRange, invalid
from controller.hosts import timestamp
from controller.selectors import Term as Term
from controller.selectors import matches as matches
from controller.selectors import parse_filter as parse_filter
from controller.selectors import selector as selector
from controller.store import Store
from tealnet.v1 import common_pb2

PAGE = 100
LONGEST_PAGE = 1000


# ---- pages


def page(names: Iterable[str], *, size: int, token: str, bound_to: str) -> tuple[list[str], Callable[[str], str]]:
    """The names after the token's, in order, and a function that makes the token for going on after a name.

    A token counts only for the request it was given for. Raises Invalid.
    """
    if size < 0:
        raise invalid("page_size", "not negative; 0 means the default")
    digest = blake2b(bound_to.encode(), digest_size=8).digest()
    after = _opened(token, digest) if token else ""
    return sorted(name for name in names if name > after), lambda last: _sealed(last, digest)


def page_size(size: int) -> int:
    """What is meant by a requested size."""
    return min(size or PAGE, LONGEST_PAGE)


def _sealed(last: str, digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest + last.encode()).decode()


def _opened(token: str, digest: bytes) -> str:
    try:
        raw = base64.b64decode(token.encode(), altchars=b"-_", validate=True)
        last = raw[8:].decode()
    except (binascii.Error, ValueError):
        raise invalid("page_token", "is not one that this API gave") from None
    if raw[:8] != digest:
        raise invalid("page_token", "was given for another parent or filter; begin without a token")
    return last


# ---- freshness


async def fresh(store: Store, read: common_pb2.ReadOptions) -> common_pb2.ReadInfo:
    """Wait until the tables are as new as the read asks; says how new they are.

    Raises Invalid, OutOfRange, StoreUnavailable.
    """
    if read.consistency not in common_pb2.ReadOptions.Consistency.values():
        raise invalid("read.consistency", f"{read.consistency} is not known")
    if read.min_revision < 0:
        raise invalid("read.min_revision", "not negative")
    strong = read.consistency == common_pb2.ReadOptions.CONSISTENCY_STRONG
    if strong or read.min_revision > store.revision:
        await store.barrier()
    if read.min_revision > store.revision:
        raise OutOfRange(
            f"the store is at revision {store.revision}, before {read.min_revision}: is it the same cluster?",
            reason="REVISION_AHEAD",
        )
    info = common_pb2.ReadInfo(revision=store.revision)
    if since := store.stale_since:
        info.stale_since.CopyFrom(timestamp(since))
    return info
