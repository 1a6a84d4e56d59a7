"""RolloutService: standard methods, and what users ask of one that runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import empty_pb2

from controller import names
from controller.api.reads import Parts
from controller.api.standard import Standard
from controller.caller import current_caller
from controller.draft import Draft
from controller.errors import Blocker, FailedPrecondition
from controller.fields import Violations, text
from controller.intents.rollout import Rollouts, carry_out, shares_of, splits_of
from controller.rollouts.commands import Command, Refused, asked
from controller.rollouts.plan import RolloutSpec, State
from controller.rollouts.transition import Key, Reason
from controller.rows import Intent
from tealnet.v1 import rollout_pb2, rollout_pb2_grpc

_REASONS = {
    Command.PAUSE: Reason.PAUSED,
    Command.RESUME: Reason.RESUMED,
    Command.ADVANCE: Reason.ADVANCED,
    Command.CONFIRM: Reason.CONFIRMED,
    Command.ROLLBACK: Reason.ROLLBACK_ASKED,
}
Check = Callable[[Intent[RolloutSpec]], None]


class RolloutService(rollout_pb2_grpc.RolloutServiceServicer):
    """The chore leader runs rollouts; here they are made, shown and told what to do."""

    def __init__(self, parts: Parts) -> None:
        self.world = parts.store.world
        self._standard: Standard[rollout_pb2.Rollout] = Standard(parts, Rollouts(parts.context))

    async def CreateRollout(self, request: rollout_pb2.CreateRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """It begins at once."""
        return await self._standard.create(request)

    async def GetRollout(self, request: rollout_pb2.GetRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """One rollout."""
        return await self._standard.get(request)

    async def ListRollouts(
        self, request: rollout_pb2.ListRolloutsRequest, context: Any
    ) -> rollout_pb2.ListRolloutsResponse:
        """Rollouts of a tenant, or of all that the caller may see."""
        return await self._standard.list(request, rollout_pb2.ListRolloutsResponse())

    async def UpdateRollout(self, request: rollout_pb2.UpdateRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """Labels and description."""
        return await self._standard.update(request)

    async def DeleteRollout(self, request: rollout_pb2.DeleteRolloutRequest, context: Any) -> empty_pb2.Empty:
        """Of one that is over."""
        await self._standard.delete(request)
        return empty_pb2.Empty()

    # ---- what users ask

    async def PauseRollout(self, request: rollout_pb2.PauseRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """It stays where it is."""
        return await self._command(request, Command.PAUSE)

    async def ResumeRollout(self, request: rollout_pb2.ResumeRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """It goes on."""
        return await self._command(request, Command.RESUME)

    async def AdvanceRollout(self, request: rollout_pb2.AdvanceRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """The present hold is over."""

        def check(row: Intent[RolloutSpec]) -> None:
            if request.step and row.spec.run.step != request.step:
                raise Refused("OTHER_STEP", f"it is at step {row.spec.run.step} already, not at {request.step}")

        return await self._command(request, Command.ADVANCE, check=check)

    async def ConfirmRollout(self, request: rollout_pb2.ConfirmRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """It stays as it is, if the time for that is not over."""

        def check(row: Intent[RolloutSpec]) -> None:
            run = row.spec.run
            if run.state is State.CONFIRMING and run.armed and row.uid not in self.world.confirmations.rows:
                raise Refused("TOO_LATE", "the time to confirm is over; it rolls back")

        return await self._command(request, Command.CONFIRM, check=check)

    async def RollbackRollout(self, request: rollout_pb2.RollbackRolloutRequest, context: Any) -> rollout_pb2.Rollout:
        """Back to the weights from before."""
        found = Violations()
        text(request.text, "text", found)
        found.finish()
        return await self._command(request, Command.ROLLBACK, said=request.text)

    async def _command(
        self, request: Any, command: Command, *, said: str = "", check: Check | None = None
    ) -> rollout_pb2.Rollout:
        name = names.check_name("rollout", request.name, "name")
        actor = current_caller().role
        unchanged: list[Intent[Any]] = []

        def build(draft: Draft) -> None:
            unchanged.clear()
            row = self._standard.row(draft, name)
            shares = {network: shares_of(split) for network, split in splits_of(draft, row.spec.run).items()}
            try:
                if check is not None:
                    check(row)
                transition = asked(command, row.spec.plan, row.spec.run, shares, text=said)
            except Refused as refused:
                text = f"{name}: {refused.text}"
                raise FailedPrecondition(text, [Blocker(refused.reason, name, text)], reason=refused.reason) from None
            if transition is None:
                draft.discard()
                unchanged.append(row)
            else:
                assert transition.key is not Key.PUT, "only the leader begins the time to confirm"
                carry_out(draft, row, transition, actor=actor)

        what = f"{_REASONS[command].value} {said}".strip()
        answer: rollout_pb2.Rollout = await self._standard.write(
            request, build, name=name, what=what, unchanged=unchanged
        )
        return answer
