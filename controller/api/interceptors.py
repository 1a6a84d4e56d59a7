"""What surrounds every call: typed errors become google.rpc statuses, writes become lines of the audit log.

Whatever is not a typed error is a bug: it is logged with its trace and answered as INTERNAL, without details.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.protobuf.message import Message
from google.rpc import code_pb2
from grpc_status import rpc_status

from controller.api.sizes import check_size
from controller.audit import AuditLog, Trail, set_trail
from controller.audit.query import iso
from controller.auth import AGENTS, OPEN
from controller.caller import current_caller
from controller.errors import Ambiguous, ApiError, ResourceExhausted, Unavailable, shortened
from controller.etcd import OutcomeUnknown, StoreError, StoreFull, TxnTooLarge

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]
Continue = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]
if TYPE_CHECKING:
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor
_READS = ("Get", "List", "Watch", "Sync", "Plan", "TestPolicy")
_LONGEST = 200  # bytes of a name or text in a line


def is_audited(method: str) -> bool:
    """Whether calls of a method stand in the audit log: all that are not known to read only."""
    return not method.startswith((*OPEN, AGENTS)) and not short_method(method).startswith(_READS)


def short_method(method: str) -> str:
    """/tealnet.v1.PortService/CreatePort → CreatePort."""
    return method.rsplit("/", 1)[-1]


async def refuse(context: Context, error: ApiError) -> NoReturn:
    """End the call with the error's status and details."""
    status = rpc_status.to_status(error.status())
    await context.abort(status.code, status.details, status.trailing_metadata)
    raise AssertionError("abort raises")


def typed(error: Exception, method: str) -> ApiError:
    """Any exception of a handler as what the caller is told."""
    match error:
        case ApiError():
            return error
        case OutcomeUnknown():
            return Ambiguous("the store does not answer; the write may have been done")
        case StoreFull():
            return ResourceExhausted("the store is full", subject="store", reason="STORE_FULL")
        case TxnTooLarge():
            text = "this is more than the store takes in one transaction; do it in several steps"
            return ResourceExhausted(text, subject="store", reason="TXN_TOO_LARGE")
        case StoreError():  # not answered, or refused because of a state that passes: a lease that went
            log.warning("the store refuses", method=method, error=str(error))
            return Unavailable("the store does not take this now; nothing was written")
        case _:
            log.error("bug: unexpected error in a handler", method=method, exc_info=error)
            return ApiError("internal error; the controller's log has the details")


class Errors(Interceptor):
    """Outermost: turns what handlers raise into statuses, and writes the audit log of `replica`."""

    def __init__(self, audit: AuditLog, *, replica: str) -> None:
        self.audit, self.replica = audit, replica

    async def intercept_service(self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap unary and server-streaming handlers."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(AGENTS):
            return handler
        if handler.response_streaming:
            return self._streaming(handler, method)
        return self._unary(handler, method)

    def _unary(self, handler: Any, method: str) -> Any:
        inner = handler.unary_unary

        async def call(request: Any, context: Context) -> Any:
            line = _Line(self, method, request, context)
            try:
                _check(request)
                response = await inner(request, context)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                line.write(result="CANCELLED")
                raise
            except Exception as error:
                refusal = typed(error, method)
                line.write(result=code_pb2.Code.Name(refusal.code), reason=refusal.reason)
                await refuse(context, refusal)
            line.write(result="OK", revision=getattr(response, "revision", 0))
            return response

        return grpc.unary_unary_rpc_method_handler(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )

    def _streaming(self, handler: Any, method: str) -> Any:
        inner = handler.stream_stream or handler.unary_stream
        factory: Any = grpc.unary_stream_rpc_method_handler
        if handler.request_streaming:
            factory = grpc.stream_stream_rpc_method_handler

        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            line = _Line(self, method, request, context)
            try:
                _check(request)
                async for response in inner(request, context):
                    yield response
            except grpc.aio.AbortError:
                raise
            except (asyncio.CancelledError, GeneratorExit):
                line.write(result="CANCELLED")
                raise
            except Exception as error:
                refusal = typed(error, method)
                line.write(result=code_pb2.Code.Name(refusal.code), reason=refusal.reason)
                await refuse(context, refusal)
            line.write(result="OK")

        return factory(
            call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
        )


def _check(request: Any) -> None:
    if isinstance(request, Message):  # of reflection it is a stream
        check_size(request)


class _Line:
    """The line of one call: who did what to which object, and what came of it."""

    def __init__(self, errors: Errors, method: str, request: Any, context: Context) -> None:
        self.errors, self.method, self.request = errors, method, request
        self.trail = Trail() if is_audited(method) else None
        # Now: gRPC crashes when it is asked about a call that is over (seen with a cancelled one).
        self.peer = str(context.peer()) if self.trail else ""
        set_trail(self.trail)

    def write(self, *, result: str, reason: str = "", revision: int = 0) -> None:
        """Once, at the end of the call. A call that only reads has no line."""
        if self.trail is None:
            return
        request, trail = self.request, self.trail
        entry = {
            "time": iso(datetime.now(UTC)),
            "replica": self.errors.replica,
            "who": who(),
            "peer": self.peer,
            "method": short_method(self.method),
            "name": shortened(subject_of(request), _LONGEST),
            "objects": trail.objects,
            "revision": 0 if getattr(request, "validate_only", False) else trail.revision or revision,
            "result": result,
            "reason": reason,
            "validate_only": bool(getattr(request, "validate_only", False)),
            "request_id": shortened(str(getattr(request, "request_id", "")), _LONGEST),
        }
        self.errors.audit.write({key: value for key, value in entry.items() if value})


def who() -> str:
    """The role of this call's party; empty where none counts."""
    try:
        return current_caller().role
    except LookupError:
        return ""


def subject_of(request: Any) -> str:
    """The resource name that a request is about: its name, its parent, or that of the object in it."""
    if not isinstance(request, Message):
        return ""
    known = request.DESCRIPTOR.fields_by_name
    for field in ("name", "parent"):
        if field in known and (value := str(getattr(request, field))):
            ident = next((f for f in known if f.endswith("_id") and f != "request_id"), "")
            return f"{value} {getattr(request, ident)}" if ident and field == "parent" else value
    for descriptor in request.DESCRIPTOR.fields:
        if descriptor.message_type is not None and not descriptor.is_repeated:
            body = getattr(request, descriptor.name)
            if "name" in body.DESCRIPTOR.fields_by_name and body.name:
                return str(body.name)
    ident = next((f for f in known if f.endswith("_id") and f != "request_id"), "")
    return str(getattr(request, ident)) if ident else ""
