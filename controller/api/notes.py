"""Who did what to which object, for `teal events`: written in the transaction of the change itself."""

from __future__ import annotations

from collections.abc import Callable

from controller.caller import current_caller
from controller.draft import Draft
from controller.errors import Unavailable
from controller.etcd import OutcomeUnknown
from controller.events import Events

Build = Callable[[Draft], None]


class Notes:
    """Adds events to drafts."""

    def __init__(self, events: Events) -> None:
        self.events = events

    async def noting(self, build: Build, *, reason: str, text: str = "") -> Build:
        """`build`, and an event for each object that it writes. Raises Unavailable, the store's errors."""
        try:
            lease, actor = await self.events.lease(), current_caller().role
        except OutcomeUnknown as error:  # of a lease, which is no harm: nothing else was sent yet
            raise Unavailable("the store does not answer; nothing was written") from error

        def noted(draft: Draft) -> None:
            build(draft)
            for own in draft.objects:
                if own.kind == "split":  # what happens to it is told as its network's
                    continue
                draft.add(self.events.row(lease, name=own.name, uid=own.uid, reason=reason, text=text, actor=actor))

        return noted
