"""Label selectors, pages, and how fresh a read must be."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import NamedTuple

from controller.errors import OutOfRange, invalid
from controller.hosts import timestamp
from controller.rows import Labels
from controller.store import Store
from tealnet.v1 import common_pb2

PAGE = 100
LONGEST_PAGE = 1000
_LONGEST_FILTER = 2000


class Term(NamedTuple):
    """One condition of a selector: `key`, `key=value` or `key!=value`."""

    key: str
    relation: str  # "" (has it), "=", "!="
    value: str


def parse_filter(text: str) -> list[Term]:
    """`a=b,c!=d,e` as terms, all of which must hold. Raises Invalid."""
    if len(text) > _LONGEST_FILTER:
        raise invalid("filter", f"at most {_LONGEST_FILTER} characters")
    terms = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, unequal, value = part.partition("!=")
        relation = "!="
        if not unequal:
            key, relation, value = part.partition("=")
        key, value = key.strip(), value.strip().removeprefix("=").strip()
        if not key:
            raise invalid("filter", f"{part[:80]!r} is not a condition like a=b, c!=d or e")
        terms.append(Term(key, relation, value))
    return terms


def matches(terms: Iterable[Term], labels: Labels) -> bool:
    """Whether labels meet all conditions; `c!=d` holds also where there is no c."""
    have = dict(labels)
    return all(_holds(term, have.get(term.key)) for term in terms)


def _holds(term: Term, value: str | None) -> bool:
    if term.relation == "=":
        return value == term.value
    return value != term.value if term.relation == "!=" else value is not None


def selector(text: str) -> Callable[[Labels], bool]:
    """A filter as a function of labels. Raises Invalid."""
    terms = parse_filter(text)
    return lambda labels: matches(terms, labels)


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
