"""What the API refuses, as typed errors; each knows its google.rpc status. Nothing here speaks gRPC.

The reason is a stable word for programs (ErrorInfo, domain "tealnet"), the text is for people: what, which field, what
to do. Anything else that is raised in a handler is a bug and becomes INTERNAL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

DOMAIN = "tealnet"
# A status travels in trailing metadata, of which gRPC clients take 8 KiB by default and cut the call otherwise. The
# text is there twice: percent-encoded (3 bytes for one at worst), and in the details in base64 (4 for 3).
_MOST_TEXT = 900  # bytes
_MOST_DETAILS = 2000  # bytes, of all details together
_MOST_WORDS = 300  # bytes of one text inside a detail


@dataclass(frozen=True, slots=True)
class Violation:
    """One field that is wrong: its path in the request, and what is wrong and what to do."""

    field: str
    text: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """What stands in the way: a stable type, the object's name, and a sentence about it."""

    type: str
    subject: str
    text: str


class ApiError(Exception):
    """Base of all refusals."""

    code: int = code_pb2.INTERNAL
    reason = "INTERNAL"

    def __init__(self, text: str, *, reason: str = "", metadata: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.text = text
        self.reason = reason or type(self).reason
        self.metadata = metadata or {}

    def details(self) -> list[Message]:
        """The google.rpc details beside ErrorInfo."""
        return []

    def status(self) -> status_pb2.Status:
        """As google.rpc.Status, with details; so short that it can be sent, whatever the request was."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        info.metadata.update({key: shortened(value, _MOST_WORDS) for key, value in self.metadata.items()})
        status = status_pb2.Status(code=self.code, message=shortened(self.text, _MOST_TEXT))
        room = _MOST_DETAILS
        for detail in (info, *self.details()):
            _fit(detail, room)
            room -= detail.ByteSize()
            status.details.add().Pack(detail)
        return status


def shortened(text: str, most: int) -> str:
    """At most `most` bytes of UTF-8; what is cut off leaves a mark."""
    raw = text.encode()
    return text if len(raw) <= most else raw[: most - 3].decode(errors="ignore") + "…"


def _fit(detail: Any, room: int) -> None:
    """Shorten the texts of a detail; of its list the first that fit stay."""
    for descriptor, value in detail.ListFields():
        if descriptor.message_type is None and not descriptor.is_repeated:
            setattr(detail, descriptor.name, shortened(value, _MOST_WORDS))
        elif descriptor.is_repeated and not descriptor.message_type.GetOptions().map_entry:
            kept = 0
            for part in value:
                _fit(part, room)
                room -= part.ByteSize() + 3  # with its tag and its length
                if kept and room < 0:
                    break
                kept += 1
            del value[kept:]


class Invalid(ApiError):
    """INVALID_ARGUMENT: fields that are wrong whatever the state of the world."""

    code = code_pb2.INVALID_ARGUMENT
    reason = "INVALID_FIELDS"

    def __init__(self, violations: Iterable[Violation], *, reason: str = "") -> None:
        self.violations = tuple(violations)
        text = "; ".join(f"{v.field}: {v.text}" if v.field else v.text for v in self.violations)
        super().__init__(text, reason=reason)

    def details(self) -> list[Message]:
        """BadRequest."""
        bad = error_details_pb2.BadRequest()
        for violation in self.violations:
            bad.field_violations.add(field=violation.field, description=violation.text)
        return [bad]


def invalid(field: str, text: str, *, reason: str = "") -> Invalid:
    """One wrong field."""
    return Invalid([Violation(field, text)], reason=reason)


class NotFound(ApiError):
    """NOT_FOUND: absent, or not the caller's; nobody can tell which. `field` names it where it was only mentioned."""

    code = code_pb2.NOT_FOUND
    reason = "NOT_FOUND"

    def __init__(self, name: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {name} not found" if field else f"{name} not found", metadata={"name": name})
        self.name, self.field = name, field

    def details(self) -> list[Message]:
        """ResourceInfo, and BadRequest where a field mentioned it."""
        info: list[Message] = [error_details_pb2.ResourceInfo(resource_name=self.name, description="not found")]
        if self.field:
            bad = error_details_pb2.BadRequest()
            bad.field_violations.add(field=self.field, description=f"{self.name} not found")
            info.append(bad)
        return info


class NoColors(NotFound):
    """NOT_FOUND: the split of a network that is there and the caller's, but has no colors; `text` says what to do."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(name)
        self.text = text


class DeletedSince(NotFound):
    """NOT_FOUND: a request that is sent again was carried out, at `revision`; its object was deleted since (T7)."""

    reason = "DELETED_SINCE"

    def __init__(self, name: str, *, revision: int) -> None:
        super().__init__(name)
        self.text = f"{name} not found: the request was carried out at revision {revision}, and it was deleted since"
        self.metadata["revision"] = str(revision)


class AlreadyExists(ApiError):
    """ALREADY_EXISTS: the name is taken."""

    code = code_pb2.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"

    def __init__(self, name: str) -> None:
        super().__init__(f"{name} exists already", metadata={"name": name})
        self.name = name

    def details(self) -> list[Message]:
        """ResourceInfo."""
        return [error_details_pb2.ResourceInfo(resource_name=self.name, description="exists already")]


class FailedPrecondition(ApiError):
    """FAILED_PRECONDITION: something must change first; the blockers say what."""

    code = code_pb2.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"

    def __init__(self, text: str, blockers: Sequence[Blocker] = (), *, reason: str = "") -> None:
        super().__init__(text, reason=reason)
        self.blockers = tuple(blockers)

    def details(self) -> list[Message]:
        """PreconditionFailure."""
        failure = error_details_pb2.PreconditionFailure()
        for blocker in self.blockers:
            failure.violations.add(type=blocker.type, subject=blocker.subject, description=blocker.text)
        return [failure] if self.blockers else []


class Aborted(ApiError):
    """ABORTED: somebody else was faster; read and try again."""

    code = code_pb2.ABORTED
    reason = "ABORTED"


class ResourceExhausted(ApiError):
    """RESOURCE_EXHAUSTED: a pool or quota is used up; `subject` names it."""

    code = code_pb2.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"

    def __init__(self, text: str, *, subject: str, reason: str = "") -> None:
        super().__init__(text, reason=reason)
        self.subject = subject

    def details(self) -> list[Message]:
        """QuotaFailure."""
        failure = error_details_pb2.QuotaFailure()
        failure.violations.add(subject=self.subject, description=self.text)
        return [failure]


class OutOfRange(ApiError):
    """OUT_OF_RANGE: for example a revision to resume from that is no longer kept."""

    code = code_pb2.OUT_OF_RANGE
    reason = "OUT_OF_RANGE"


class PermissionDenied(ApiError):
    """PERMISSION_DENIED: not for this role."""

    code = code_pb2.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class Unauthenticated(ApiError):
    """UNAUTHENTICATED: no certificate, or one that does not count."""

    code = code_pb2.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Unavailable(ApiError):
    """UNAVAILABLE: the store does not answer; nothing was written."""

    code = code_pb2.UNAVAILABLE
    reason = "STORE_UNAVAILABLE"


class Ambiguous(Unavailable):
    """UNAVAILABLE: the store did not answer, and the write may have been done."""

    reason = "OUTCOME_UNKNOWN"
