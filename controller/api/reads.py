"""Get and List: the same for every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from google.protobuf.message import Message

from controller import names
from controller.api import filters
from controller.api.notes import Notes
from controller.api.present import Presenter
from controller.caller import Caller, current_caller
from controller.commit import Committer
from controller.errors import NotFound
from controller.intents.base import Context
from controller.requests import Requests
from controller.rows import Intent
from controller.store import Store

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Message)


@dataclass(frozen=True, slots=True)
class Parts:
    """What all services need."""

    store: Store
    committer: Committer
    requests: Requests
    notes: Notes
    presenter: Presenter
    context: Context


class Reads(Generic[M]):
    """The methods of one kind that only read."""

    def __init__(self, parts: Parts, kind: str) -> None:
        self.parts, self.kind = parts, kind
        self.field = names.field_of(kind)
        self.world = parts.store.world

    async def get(self, request: Any) -> M:
        """Get, AIP-131."""
        name, caller = names.check_name(self.kind, request.name, "name"), current_caller()
        await filters.fresh(self.parts.store, request.read)
        row = getattr(self.world, f"{self.kind}s").rows.get(name)
        if row is None or not self.parts.presenter.sees(self.kind, row, caller):
            raise NotFound(name)
        message: M = self.parts.presenter.message(self.kind, row, caller)
        return message

    async def list(self, request: Any, response: R) -> R:
        """List, AIP-132: pages by name; not a snapshot."""
        caller = current_caller()
        info = await filters.fresh(self.parts.store, request.read)
        parent = request.parent if self.kind in names.IN_TENANT else ""
        candidates = self._candidates(parent, caller)
        keeps = self.keeps(request.filter)
        size = filters.page_size(request.page_size)
        bound_to = f"{self.kind}\0{parent}\0{request.filter}"
        ordered, token_after = filters.page(
            candidates, size=request.page_size, token=request.page_token, bound_to=bound_to
        )
        answer: Any = response
        found = getattr(answer, f"{self.field}s")
        rows = getattr(self.world, f"{self.kind}s").rows
        for name in ordered:
            row = rows[name]
            if not self.parts.presenter.sees(self.kind, row, caller) or not keeps(row):
                continue
            if len(found) == size:
                answer.next_page_token = token_after(found[-1].name)
                break
            found.append(self.parts.presenter.message(self.kind, row, caller))
        answer.info.CopyFrom(info)
        return response

    def keeps(self, text: str) -> Callable[[Intent[Any]], bool]:
        """A filter as a function of rows; ports override it. Raises Invalid."""
        select = filters.selector(text)
        return lambda row: select(row.labels)

    def _candidates(self, parent: str, caller: Caller) -> Iterable[str]:
        rows: dict[str, Any] = getattr(self.world, f"{self.kind}s").rows
        if self.kind not in names.IN_TENANT:
            return rows
        if parent == f"tenants/{names.ANY}":
            parent = caller.tenant
            if not parent:
                return rows
        elif names.check_parent(parent, "parent") not in self.world.tenants.rows:
            raise NotFound(parent)
        index = getattr(self.world, f"{self.kind}s_by_tenant")
        return list(index.keys(parent))
