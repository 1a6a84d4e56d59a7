"""What the hosts in session here have, asked of them now, and what is written about their ports.

Compared is only between two moments at which the host owes nothing and is owed nothing; a repair is to send again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from controller.session import Session
from controller.sessions import Sessions
from controller.store import Store
from tealnet.v1 import admin_pb2

_AGAIN = 0.05  # seconds between two looks at a host that is busy
_MOST = 100  # findings about one host
_PLANNED = ("Armed",)
"""Reasons of what is not on the devices yet because nobody wants it there yet."""


@dataclass(slots=True)
class Looked:
    """What was found, and the hosts (uids) that were compared whole."""

    findings: list[admin_pb2.Finding] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)


class HostCheck:
    """The hosts of one replica."""

    def __init__(self, store: Store, sessions: Sessions) -> None:
        self.store, self.sessions = store, sessions

    async def look(self, *, repair: bool, deadline: float) -> Looked:
        """At all of them side by side; `deadline` is on the monotonic clock."""
        looked, sessions = Looked(), list(self.sessions.by_host.values())
        for found in await asyncio.gather(*(self._host(one, repair=repair, deadline=deadline) for one in sessions)):
            looked.findings.extend(found.findings)
            looked.compared.extend(found.compared)
        return looked

    async def _host(self, session: Session, *, repair: bool, deadline: float) -> Looked:
        looked = Looked()
        for scope in sorted(self.sessions.resources.scopes_of(session.host_uid)):
            has = await self._quietly(session, scope, deadline)
            if has is None:
                return looked
            looked.findings.extend(self._scope(session, scope, has, repair=repair))
        looked.findings.extend(self._said(session))
        looked.findings.extend(self._statuses(session, repair=repair))
        del looked.findings[_MOST:]
        looked.compared.append(session.host_uid)
        return looked

    async def _quietly(self, session: Session, scope: str, deadline: float) -> Mapping[str, bytes] | None:
        """What the host has of a scope when nothing was on its way; None: not before the deadline."""
        while (left := deadline - time.monotonic()) > 0 and self.sessions.by_host.get(session.host_uid) is session:
            before = session.outbox.quiet
            if before and scope in session.outbox.scopes:
                answer = session.versions_of(scope)
                await asyncio.wait({answer}, timeout=left)
                if not answer.done() or answer.cancelled():
                    return None
                if session.outbox.quiet == before:
                    return answer.result()
            elif before and scope not in self.sessions.resources.scopes_of(session.host_uid):
                return {}
            await asyncio.sleep(_AGAIN)
        return None

    def _scope(
        self, session: Session, scope: str, has: Mapping[str, bytes], *, repair: bool
    ) -> Iterator[admin_pb2.Finding]:
        """Nothing is awaited between the answer and this: what is compared is of one moment."""
        chunks, kept = self.sessions.resources.scope(scope).chunks, set(session.unaccounted)
        wrong: dict[str, tuple[str, str]] = {}
        for key in chunks.keys() - has.keys():
            wrong[key] = "HOST_LACKS", "the host does not have it"
        for key, version in has.items():
            if key in chunks and chunks[key].version != version:
                wrong[key] = "HOST_DIFFERS", "the host has it otherwise"
            elif key not in chunks and key not in kept:
                wrong[key] = "HOST_EXTRA", "the host has it and must not"
        if repair and wrong:
            session.changed(self.store.revision, scope, set(wrong))
        for key, (kind, text) in sorted(wrong.items())[:_MOST]:
            subject = f"{session.admitted.host.name} {session.on_wire(scope)} {key}"
            yield admin_pb2.Finding(
                kind=kind, subject=subject, object=self._object(key), text=text,
                repair="send it again" if key in chunks else "have the host take it away", repaired=repair,
            )  # fmt: skip

    def _said(self, session: Session) -> Iterator[admin_pb2.Finding]:
        host = session.admitted.host.name
        for key, failure in sorted(session.report.failures.items()):
            if failure.reason not in _PLANNED:
                text = f"the host could not apply it: {failure.reason}: {failure.text}"
                yield admin_pb2.Finding(kind="HOST_FAILS", subject=f"{host} {key}", object=self._object(key), text=text)
        for key in session.unaccounted:
            text = f"the host has a port that is not in the store, and nobody deleted it: `teal host accept {host}`"
            yield admin_pb2.Finding(kind="UNACCOUNTED", subject=f"{host} {key}", text=text)

    def _statuses(self, session: Session, *, repair: bool) -> Iterator[admin_pb2.Finding]:
        """What is written about ports, against what the host has said."""
        for uid in session.report.differing():
            if repair:
                session.report.again(uid)
            yield admin_pb2.Finding(
                kind="WRONG_STATUS",
                subject=self.store.keys.relative(self.store.keys.port_status(uid)),
                object=self._object(f"localport/{uid}"),
                text=f"it is not what {session.admitted.host.name} has said of the port",
                repair="write it again",
                repaired=repair,
            )

    def _object(self, key: str) -> str:
        kind, _, uid = key.partition("/")
        names = self.store.world.ports_by_uid.keys(uid) if kind in ("localport", "endpoint") else []
        return next(iter(names), "")
