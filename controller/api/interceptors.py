"""What surrounds every call: typed errors become google.rpc statuses, writes become audit lines.

Whatever is not a typed error is a bug: it is logged with its trace and answered as INTERNAL, without details.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
import structlog
from google.rpc import code_pb2
from grpc_status import rpc_status

from controller.auth import AGENTS
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
_WRITES = ("Create", "Update", "Delete", "Batch", "Accept", "Fence", "Drain", "Join")


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
    """Outermost: turns what handlers raise into statuses, and logs writes."""

    async def intercept_service(self, continuation: Continue, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Wrap unary and server-streaming handlers."""
        handler: Any = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or method.startswith(AGENTS):
            return handler
        if handler.response_streaming:
            return _streaming(handler, method)
        return _unary(handler, method)


def _unary(handler: Any, method: str) -> Any:
    inner, audited = handler.unary_unary, short_method(method).startswith(_WRITES)

    async def call(request: Any, context: Context) -> Any:
        try:
            response = await inner(request, context)
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            refusal = typed(error, method)
            if audited:
                _audit(method, request, result=code_pb2.Code.Name(refusal.code), reason=refusal.reason)
            await refuse(context, refusal)
        if audited:
            _audit(method, request, result="OK", revision=getattr(response, "revision", 0))
        return response

    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


def _streaming(handler: Any, method: str) -> Any:
    inner = handler.stream_stream or handler.unary_stream
    factory: Any = grpc.unary_stream_rpc_method_handler
    if handler.request_streaming:
        factory = grpc.stream_stream_rpc_method_handler

    async def call(request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for response in inner(request, context):
                yield response
        except (grpc.aio.AbortError, asyncio.CancelledError):
            raise
        except Exception as error:
            await refuse(context, typed(error, method))

    return factory(
        call, request_deserializer=handler.request_deserializer, response_serializer=handler.response_serializer
    )


def _audit(method: str, request: Any, **result: Any) -> None:
    """Who did what to which object, and what came of it."""
    try:
        who = current_caller().role
    except LookupError:
        who = ""
    log.info("audit", who=who, method=short_method(method), name=shortened(subject_of(request), 200), **result)


def subject_of(request: Any) -> str:
    """The resource name that a request is about: its name, its parent, or that of the object in it."""
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
