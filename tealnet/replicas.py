"""Several replicas as one gRPC channel: a call goes to the one that answered last, and on to the next if it is gone.

A replica is gone when the transport says so: refused, cut, or silent for two seconds (keep-alive pings of HTTP/2).
What a replica itself answers, also "the store does not answer", is the answer. A write is sent again under the same
request id, which the controller carries out once (AIP-155), so a caller never learns that its replica died in between.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    _Channel = grpc.Channel
else:
    _Channel = object

DETAILS = "grpc-status-details-bin"
OPTIONS = (
    ("grpc.keepalive_time_ms", 1000),
    ("grpc.keepalive_timeout_ms", 1000),
    ("grpc.http2.ping_timeout_ms", 1000),  # the one before is not kept without (grpcio 1.85.1)
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also how long a handshake may take
)
"""Of each replica's channel: a silent one is left within two seconds."""
_PAUSE = 0.1  # seconds, when every replica was tried


def is_gone(error: grpc.RpcError) -> bool:
    """Whether the transport failed: a replica that refuses says why in the details."""
    if error.code() is not grpc.StatusCode.UNAVAILABLE:
        return False
    return all(item.key != DETAILS for item in error.trailing_metadata() or ())


class Replicas(_Channel):
    """The part of `grpc.Channel` that stubs and the SDK use, over one channel per replica."""

    def __init__(self, channels: Sequence[grpc.Channel]) -> None:
        self._channels = list(channels)
        self._turn = 0

    def close(self) -> None:
        """End all connections."""
        for channel in self._channels:
            channel.close()

    def unary_unary(self, method: str, **serializers: Any) -> Callable[..., Any]:  # type: ignore[override]
        """As in `grpc.Channel`."""
        serializers.pop("_registered_method", None)
        calls = [channel.unary_unary(method, **serializers) for channel in self._channels]

        def call(request: Any, timeout: float | None = None, **more: Any) -> Any:
            if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:
                request.request_id = str(uuid.uuid4())
            deadline = time.monotonic() + (timeout if timeout is not None else 30.0)
            for attempt in range(1, 1 << 30):
                turn = self._turn
                try:
                    return calls[turn](request, timeout=max(deadline - time.monotonic(), 0.001), **more)
                except grpc.RpcError as error:
                    if not is_gone(error) or time.monotonic() + _PAUSE > deadline:
                        raise
                    self._leave(turn)
                if attempt % len(calls) == 0:
                    time.sleep(_PAUSE)
            raise AssertionError("unreachable")

        return call

    def unary_stream(self, method: str, **serializers: Any) -> Callable[..., Any]:  # type: ignore[override]
        """As in `grpc.Channel`; a stream that is cut is for the caller to begin again (`tealnet.follow`)."""
        serializers.pop("_registered_method", None)
        calls = [channel.unary_stream(method, **serializers) for channel in self._channels]

        def call(request: Any, timeout: float | None = None, **more: Any) -> Iterator[Any]:
            turn = self._turn
            stream = calls[turn](request, timeout=timeout, **more)
            try:
                yield from stream
            except grpc.RpcError as error:
                if is_gone(error):
                    self._leave(turn)
                raise
            finally:
                stream.cancel()

        return call

    def _leave(self, turn: int) -> None:
        """Turn to the next replica, unless another call has done so already."""
        if self._turn == turn:
            self._turn = (turn + 1) % len(self._channels)
