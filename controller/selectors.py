"""Label selectors: `a=b,c!=d,e`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from controller.errors import invalid
from controller.rows import Labels

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
