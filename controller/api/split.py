"""TrafficSplitService: weights of one or several networks, changed in one revision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from controller import names
from controller.api import filters
from controller.api.reads import Parts, Reads
from controller.api.standard import row_of
from controller.caller import Caller, current_caller
from controller.commit import Committed, Effect
from controller.draft import Draft
from controller.errors import ApiError, FailedPrecondition, NoColors, NotFound, Unavailable, invalid
from controller.etcd import OutcomeUnknown
from controller.fields import Violations, unknown
from controller.intents.weights import Splits, Wish, wishes_of
from controller.requests import Replay
from controller.rows import Intent
from tealnet.v1 import split_pb2, split_pb2_grpc

REASON = "WeightsSet"


class SplitReads(Reads[split_pb2.TrafficSplit]):
    """Splits are listed by network, and one that is asked for by name may have no colors."""

    async def get(self, request: Any) -> split_pb2.TrafficSplit:
        """Get; raises NoColors where the caller sees the network."""
        try:
            return await super().get(request)
        except NotFound as error:
            network = names.network_of(error.name)
            row = self.world.networks.rows.get(network)
            if row is None or not self.parts.presenter.sees("network", row, current_caller()):
                raise
            raise NoColors(error.name, names.no_colors(network)) from None

    def keeps(self, text: str) -> Callable[[Intent[Any]], bool]:
        """network=…; they have no labels."""
        terms = filters.parse_filter(text)
        if odd := next((term for term in terms if term.key != "network" or not term.relation), None):
            raise invalid("filter", f"{odd.key[:80]!r}: splits are listed by network=…")
        return lambda row: all(
            (term.value in (row.spec.network, names.short(row.spec.network))) == (term.relation == "=")
            for term in terms
        )


class TrafficSplitService(split_pb2_grpc.TrafficSplitServiceServicer):
    """Get, List and SetWeights."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self._splits = Splits(parts.presenter.status)
        self._reads = SplitReads(parts, "split")

    async def GetTrafficSplit(self, request: split_pb2.GetTrafficSplitRequest, context: Any) -> split_pb2.TrafficSplit:
        """One split; a network without colors has none."""
        return await self._reads.get(request)

    async def ListTrafficSplits(
        self, request: split_pb2.ListTrafficSplitsRequest, context: Any
    ) -> split_pb2.ListTrafficSplitsResponse:
        """Splits of a tenant, or of all that the caller may see."""
        return await self._reads.list(request, split_pb2.ListTrafficSplitsResponse())

    async def SetWeights(self, request: split_pb2.SetWeightsRequest, context: Any) -> split_pb2.SetWeightsResponse:
        """All networks in one transaction: whoever has the revision has all of it."""
        caller = current_caller()
        names.check_parent(request.parent, "parent")
        found = Violations()
        unknown(request, "", found)
        wishes = wishes_of(request, found)
        found.finish()
        try:
            committed = await self._commit(request, wishes, caller)
        except FailedPrecondition as error:
            if error.reason not in ("COLOR_EMPTY", "COLOR_NOT_ACTIVE"):
                raise
            await self.parts.store.barrier()  # this replica may not know yet what the caller has just made
            committed = await self._commit(request, wishes, caller)
        return self._answer(wishes, committed, caller)

    async def _commit(self, request: split_pb2.SetWeightsRequest, wishes: list[Wish], caller: Caller) -> Committed:
        parts, write = self.parts, not request.validate_only
        ticket, lease = None, 0

        def build(draft: Draft) -> None:
            for wish in wishes:
                if text := self._splits.move(draft, wish):
                    network = draft.reading.peek("network", wish.network)
                    uid = network.uid if network else ""
                    event = parts.notes.events.row(
                        lease, name=names.split_of(wish.network), uid=uid, reason=REASON, text=text, actor=caller.role
                    )
                    draft.add(event)
            if ticket and draft.objects:
                ticket.enter(draft)

        try:
            if write:
                lease = await parts.notes.events.lease()
                ticket = await parts.requests.ticket(request, tenant=request.parent, request_id=request.request_id)
            effect = Effect.WRITE if write else Effect.VALIDATE
            return await parts.committer.commit(build, effect=effect, patience=caller.time_left)
        except OutcomeUnknown as error:  # of the lease, which is no harm: nothing else was sent yet
            raise Unavailable("the store does not answer; nothing was written") from error
        except (ApiError, Replay) as error:
            why = await parts.requests.explain(ticket, error)
            if not isinstance(why, Replay):
                raise why from None
            await parts.requests.catch_up()
            return Committed(0, ())

    def _answer(self, wishes: list[Wish], committed: Committed, caller: Caller) -> split_pb2.SetWeightsResponse:
        """As written; what was so already, as it is."""
        world, written = self.parts.store.world, {own.name: own for own in committed.written}
        response = split_pb2.SetWeightsResponse()
        for wish in wishes:
            name = names.split_of(wish.network)
            own = written.get(name)
            row = row_of(own, committed.revision, self.parts.store) if own else world.splits.rows.get(name)
            if row is not None:
                response.splits.append(self.parts.presenter.message("split", row, caller))
        response.revision = max((split.revision for split in response.splits), default=0)
        return response
