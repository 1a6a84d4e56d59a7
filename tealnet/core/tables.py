"""Keyed tables and the tables derived from them.

A derived row is written as one pure function of other rows. While it runs, every read is noted; when something it
read changes, the row is computed again. There is no second code path: a full resync is the same function, run for
all keys. The idea is Istio's krt; see docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

KeysOf = Callable[[V], Iterable[Hashable]]
Cell = tuple["Derived[Any, Any]", Hashable]  # one row of one derived table


class Source:
    """Something that can be read by key and says when a key has changed."""

    def __init__(self, graph: Graph) -> None:
        self.rank = graph.next_rank()
        self.readers: dict[Hashable, set[Cell]] = {}
        self.followers: list[Derived[Any, Any]] = []  # derived tables that share my keys

    def has(self, key: Hashable) -> bool:
        """Whether there is anything of this key."""
        raise NotImplementedError

    def announce(self, key: Hashable) -> None:
        """Tell who follows me and who has read `key` that it is not what it was."""
        for derived in self.followers:
            derived.dirty.add(key)
        for derived, reader_key in self.readers.get(key, ()):
            derived.dirty.add(reader_key)


class Table(Source, Generic[K, V]):
    """Rows by key. Writing an equal row is not a change."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.graph = graph
        self.rows: dict[K, V] = {}
        self.indexes: list[Index[V]] = []
        self.changed: set[K] | None = None

    def has(self, key: Hashable) -> bool:
        """Whether there is such a row."""
        return key in self.rows

    def watch_changes(self) -> None:
        """From now on note the keys that change, for `take_changes`."""
        self.changed = set(self.rows)

    def take_changes(self) -> set[K]:
        """The keys changed since the last call; bounded, because it is keyed."""
        taken, self.changed = self.changed or set(), set()
        return taken

    def index(self, keys_of: KeysOf[V]) -> Index[V]:
        """The rows by a property; declare it before rows are put."""
        index: Index[V] = Index(self.graph, self.rows, keys_of)
        self.indexes.append(index)
        return index

    def put(self, key: K, row: V | None) -> None:
        """Set or, with None, remove a row."""
        old = self.rows.get(key)
        if old == row:
            return
        if row is None:
            del self.rows[key]
        else:
            self.rows[key] = row
        for index in self.indexes:
            index.move(key, old, row)
        if self.changed is not None:
            self.changed.add(key)
        self.announce(key)

    def replace_all(self, rows: Mapping[K, V]) -> None:
        """Make the table equal to `rows`: a resync is a diff, not a reset."""
        for key in self.rows.keys() - rows.keys():
            self.put(key, None)
        for key, row in rows.items():
            self.put(key, row)


class Index(Source, Generic[V]):
    """The keys of a table's rows, by some property of the row."""

    def __init__(self, graph: Graph, rows: Mapping[Any, V], keys_of: KeysOf[V]) -> None:
        super().__init__(graph)
        self.rows, self.keys_of = rows, keys_of
        self.buckets: dict[Hashable, dict[Hashable, None]] = {}

    def has(self, key: Hashable) -> bool:
        """Whether there is a row that has this property."""
        return key in self.buckets

    def keys(self, value: Hashable) -> list[Any]:
        """The keys of the rows that have this property, for code outside derived tables."""
        return list(self.buckets.get(value, ()))

    def move(self, key: Hashable, old: V | None, new: V | None) -> None:
        """Follow one row from its old to its new properties."""
        before = set() if old is None else set(self.keys_of(old))
        after = set() if new is None else set(self.keys_of(new))
        for value in before - after:
            del self.buckets[value][key]
            if not self.buckets[value]:
                del self.buckets[value]
        for value in after - before:
            self.buckets.setdefault(value, {})[key] = None
        for value in before | after:
            self.announce(value)


class Derived(Table[K, V]):
    """A table computed row by row; `over` says which keys it may have."""

    def __init__(self, graph: Graph, over: Source, compute: Callable[[Read, K], V | None]) -> None:
        super().__init__(graph)
        self.over, self.compute = over, compute
        self.dirty: set[K] = set()
        self.noted: dict[K, list[tuple[Source, Hashable]]] = {}
        self.errors: dict[K, Exception] = {}  # rows that could not be computed: absent, and reported
        over.followers.append(self)

    def settle(self) -> None:
        """Compute what is dirty. A row that raises is absent and stands in `errors`; others go on."""
        while self.dirty:
            self._compute(self.dirty.pop())

    def _compute(self, key: K) -> None:
        self.forget(key)
        read = Read((self, key))
        try:
            row = self.compute(read, key)
            self.errors.pop(key, None)
        except Exception as error:  # blast radius one: this row only
            row = None
            self.errors[key] = error
        if read.noted:
            self.noted[key] = read.noted
        if row is None and key not in self.errors and not self.over.has(key):
            self.forget(key)  # most never come again; if this one does, `over` says so
        self.put(key, row)

    def steps(self) -> Iterator[None]:
        """`settle`, row by row."""
        while self.dirty:
            self._compute(self.dirty.pop())
            yield

    def forget(self, key: K) -> None:
        """Drop the notes of what this row read."""
        for source, source_key in self.noted.pop(key, ()):
            readers = source.readers[source_key]
            readers.discard((self, key))
            if not readers:
                del source.readers[source_key]


class Read:
    """What a compute function may see. Asking for a missing row is noted as well."""

    __slots__ = ("cell", "noted")

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.noted: list[tuple[Source, Hashable]] = []

    def get(self, table: Table[K, V], key: K) -> V | None:
        """One row, or None where there is none (yet)."""
        self._note(table, key)
        return table.rows.get(key)

    def all(self, index: Index[V], value: Hashable) -> list[V]:
        """The rows that have this property."""
        self._note(index, value)
        return [index.rows[key] for key in index.buckets.get(value, ())]

    def keys(self, index: Index[V], value: Hashable) -> list[Any]:
        """The keys of the rows that have this property."""
        self._note(index, value)
        return list(index.buckets.get(value, ()))

    def any(self, index: Index[V], value: Hashable) -> bool:
        """Whether there is a row that has this property; however many there are."""
        self._note(index, value)
        return value in index.buckets

    def _note(self, source: Source, key: Hashable) -> None:
        if source.rank >= self.cell[0].rank:
            raise RuntimeError("a derived table may only read tables declared before it")
        readers = source.readers.setdefault(key, set())
        if self.cell not in readers:
            readers.add(self.cell)
            self.noted.append((source, key))


class Graph:
    """All tables of one process. Declared order is dependency order."""

    def __init__(self) -> None:
        self._ranks = 0
        self._derived: list[Derived[Any, Any]] = []

    def next_rank(self) -> int:
        """The place of the next table in the order of declaration."""
        self._ranks += 1
        return self._ranks

    def table(self) -> Table[Any, Any]:
        """A new input table."""
        return Table(self)

    def derive(self, over: Source, compute: Callable[[Read, Any], Any]) -> Derived[Any, Any]:
        """A new derived table; `compute` is pure."""
        derived: Derived[Any, Any] = Derived(self, over, compute)
        self._derived.append(derived)
        return derived

    def settle(self) -> None:
        """Run every derived table that has something dirty; one pass is enough. Never awaits."""
        for derived in self._derived:
            if derived.dirty:
                derived.settle()

    def steps(self) -> Iterator[None]:
        """`settle`, row by row: who has much to compute can stop now and then and let others run.

        Until the end derived rows are of different times; what is changed meanwhile is computed as well.
        """
        while any(derived.dirty for derived in self._derived):
            for derived in self._derived:
                yield from derived.steps()

    def noted(self) -> list[int]:
        """By derived table: how many keys have noted what they read. No more than there are keys, whatever has gone."""
        return [len(derived.noted) for derived in self._derived]

    def errors(self) -> list[tuple[Hashable, Exception]]:
        """Every row that could not be computed."""
        return [item for derived in self._derived for item in derived.errors.items()]
