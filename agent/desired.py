"""What is wanted on this host, per layer: the union of what all features want.

An object's owner is the row (of a resource or a fact) that wants it: a failure at a device key is reported as a
failure of its owners. Two owners may want the same object; if they want different objects in one place, the owner
that is first in order keeps it and the other is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agent.drivers.base import Failure
from tealnet.core.delta import Delta
from tealnet.core.tables import Derived

Pairs = tuple[tuple[Hashable, Any], ...]  # (device key, device object)
PlaceOf = Callable[[Hashable, Any], Hashable]

LAYERS = ("netns", "link", "guard", "ovsdb", "address", "zone", "flow")  # create left to right, delete right to left


@dataclass(frozen=True, slots=True)
class Wants:
    """A derived table of a feature whose rows are tuples of (device key, device object) for one layer.

    `kind` says whose failure it is: the resource key of a row is `<kind>/<row key>` ("localport" where the table is
    derived over local ports, "segment" over segments …). "" = nobody's: shown in the agent's own status only.
    """

    layer: str
    table: Derived[Any, Pairs]
    kind: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Owner:
    """A row that wants something. Ordered by the place of its table, then by key."""

    place: int
    key: str
    resource: str  # resource key, or ""
    row: Hashable = field(default=None, compare=False)  # the key itself


def key_itself(key: Hashable, value: Any) -> Hashable:
    """The place of most objects is their key."""
    return key


class Desired:
    """Follows the features' tables and keeps `deltas[layer]` told what is wanted.

    `places` says, for layers where two different keys can stand in each other's way (flows with the same match), what
    the place is that only one of them can have. Who is first is decided place by place, so that objects of different
    owners which have a key in common must have their place in common, too.
    """

    def __init__(self, wants: Sequence[Wants], places: Mapping[str, PlaceOf] | None = None) -> None:
        self.deltas: dict[str, Delta[Hashable, Any]] = {layer: Delta() for layer in LAYERS}
        self.owners: dict[str, dict[Hashable, set[Owner]]] = {layer: {} for layer in LAYERS}
        self._wants = list(wants)
        self._place_of = {layer: (places or {}).get(layer, key_itself) for layer in LAYERS}
        self._claims: dict[str, dict[Hashable, dict[Owner, tuple[Hashable, Any]]]] = {layer: {} for layer in LAYERS}
        self._rows: list[dict[Hashable, Pairs]] = [{} for _ in wants]
        self._contested: dict[str, set[Hashable]] = {layer: set() for layer in LAYERS}
        for want in self._wants:
            want.table.watch_changes()

    def update(self) -> bool:
        """Take over what changed in the tables; call after the graph has settled. Says whether anything did."""
        changed = False
        for index, want in enumerate(self._wants):
            for row_key in want.table.take_changes():
                changed = True
                self._row(index, want, row_key)
        return changed

    def failures(self) -> dict[str, Failure]:
        """By resource key: rows that could not be derived, and objects that another owner has taken the place of."""
        out: dict[str, Failure] = {}
        for want in self._wants:
            for row_key, error in want.table.errors.items() if want.kind else ():
                out[f"{want.kind}/{row_key}"] = Failure("CannotDerive", repr(error), retriable=False)
        for layer, places in self._contested.items():
            for place in sorted(places, key=str):
                first, *others = sorted(self._claims[layer][place])
                winner = self._claims[layer][place][first]
                for owner in others:
                    if self._claims[layer][place][owner] != winner and owner.resource:
                        text = f"{layer} {winner[0]}: {first.resource or 'the agent'} wants it otherwise"
                        out.setdefault(owner.resource, Failure("Conflict", text, retriable=False))
        return out

    def resources(self, layer: str, key: Hashable) -> list[str]:
        """Whose object this is, as resource keys; those who wanted it last, if nobody does now."""
        return sorted({owner.resource for owner in self.owners[layer].get(key, ()) if owner.resource})

    def beside(self, layer: str, key: Hashable) -> Iterator[Any]:
        """What is wanted now by those who want this, or wanted it last."""
        for owner in self.owners[layer].get(key, ()):
            for _, value in self._rows[owner.place].get(owner.row, ()):
                yield value

    def place(self, layer: str, key: Hashable, value: Any) -> Hashable:
        """What only one object of this layer can have."""
        return self._place_of[layer](key, value)

    def forget(self, layer: str, key: Hashable) -> None:
        """Nobody needs to know any more whose an object was that is neither wanted nor there."""
        delta = self.deltas[layer]
        if key not in delta.desired and key not in delta.actual:
            self.owners[layer].pop(key, None)

    def known(self, layer: str) -> list[Hashable]:
        """Keys of which it is known whose they are."""
        return list(self.owners[layer])

    def _row(self, index: int, want: Wants, row_key: Hashable) -> None:
        owner = Owner(index, str(row_key), f"{want.kind}/{row_key}" if want.kind else "", row_key)
        old = self._rows[index].pop(row_key, ())
        new = want.table.rows.get(row_key, ())
        if new:
            self._rows[index][row_key] = new
        place_of, claims = self._place_of[want.layer], self._claims[want.layer]
        places: dict[Hashable, None] = {}
        for key, value in old:
            place = place_of(key, value)
            places[place] = None
            claimants = claims.get(place)
            if claimants is not None and claimants.pop(owner, None) is not None and not claimants:
                del claims[place]
        for key, value in new:
            place = place_of(key, value)
            places[place] = None
            claims.setdefault(place, {})[owner] = (key, value)
        owners = self.owners[want.layer]
        # An object that somebody else wants by now, in another place, is not ours to give up.
        self._decide(want.layer, places, stale=[key for key, _ in old if owner in owners.get(key, {owner})])

    def _decide(self, layer: str, places: Iterable[Hashable], stale: Iterable[Hashable]) -> None:
        """Want the first owner's object in each of these places, and nothing else at keys that lost theirs."""
        delta, owners = self.deltas[layer], self.owners[layer]
        wanted: dict[Hashable, Any] = {}
        losers: set[Hashable] = set(stale)
        for place in places:
            claims = self._claims[layer].get(place, {})
            self._contested[layer].discard(place)
            if not claims:
                continue
            key, value = claims[min(claims)] if len(claims) > 1 else next(iter(claims.values()))
            wanted[key] = value
            owners[key] = set(claims)
            if len(claims) > 1 and any(claim != (key, value) for claim in claims.values()):
                self._contested[layer].add(place)
                losers.update(claim[0] for claim in claims.values())
        for key in losers - wanted.keys():
            delta.want(key, None)
        for key, value in wanted.items():
            delta.want(key, value)
