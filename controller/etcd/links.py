"""Channels to the endpoints of one etcd, and which of them is used now.

One channel per endpoint, made when first needed and kept. `ready` gives the first one that is connected, beginning
with the one that worked last; who finds it unusable calls `leave`, and the next caller begins with the next endpoint.
gRPC's own load balancing is not used: a write must know whether it left this process, and a watch must be able to
go to another member when its own has lost the leader.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import grpc.aio

from controller.etcd.errors import StoreUnavailable

_OPTIONS: list[tuple[str, int]] = [
    # etcd ends connections that ping more often than its --grpc-keepalive-min-time (5 s by default).
    ("grpc.keepalive_time_ms", 6_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    # Without this one the first is not kept: with grpcio 1.85.1 an endpoint that fell silent was noticed by its 60 s.
    ("grpc.http2.ping_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
]
_CONNECT = 1.0  # seconds one endpoint gets to connect while there are others
_PAUSE = 0.05  # seconds between two rounds over endpoints that all refuse


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM for https endpoints: the CA that signed etcd's certificate, our own leaf and its key (mTLS).

    `server_name` replaces the endpoint's host name in the check of etcd's certificate.
    """

    ca: Path
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""


def parse_endpoint(endpoint: str) -> tuple[str, bool]:
    """The gRPC target of an endpoint and whether it wants TLS.

    Accepted: `https://host:port`, `http://host:port`, `unix:/path`. Raises ValueError that says what is wrong.
    """
    if endpoint.startswith("unix:"):
        path = endpoint.removeprefix("unix:").removeprefix("//")
        if not path.startswith("/"):
            raise ValueError(f"etcd endpoint {endpoint!r}: the path of a unix socket must be absolute")
        return f"unix:{path}", False
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or url.hostname is None or url.port is None or url.path not in ("", "/"):
        raise ValueError(f"etcd endpoint {endpoint!r}: use https://host:port, http://host:port or unix:/path")
    return url.netloc, url.scheme == "https"


class Links:
    """The endpoints of one etcd. For one event loop."""

    def __init__(self, endpoints: Sequence[str], tls: Tls | None) -> None:
        if not endpoints:
            raise ValueError("at least one etcd endpoint is needed")
        self._targets = [parse_endpoint(e) for e in endpoints]
        if any(secure for _, secure in self._targets) and tls is None:
            raise ValueError("https endpoints of etcd need a CA certificate")
        self._names = tuple(endpoints)
        self._tls = tls
        self._channels: list[grpc.aio.Channel | None] = [None] * len(endpoints)
        self._current = 0

    def __len__(self) -> int:
        return len(self._names)

    @property
    def endpoint(self) -> str:
        """The endpoint that is used now, as it was given."""
        return self._names[self._current]

    def leave(self, channel: grpc.aio.Channel) -> None:
        """`channel` was no good: begin with the next endpoint, unless someone has already gone on."""
        if self._channels[self._current] is channel:
            self._current = (self._current + 1) % len(self._names)

    async def ready(self, deadline: float) -> grpc.aio.Channel:
        """A connected channel; raises StoreUnavailable when there is none until `deadline` (time.monotonic)."""
        while True:
            for offset in range(len(self._names)):
                index = (self._current + offset) % len(self._names)
                channel = self._channel(index)
                if await _connected(channel, min(deadline, time.monotonic() + _CONNECT)):
                    self._current = index
                    return channel
            if time.monotonic() + _PAUSE >= deadline:
                raise StoreUnavailable(f"no connection to etcd at {', '.join(self._names)}")
            await asyncio.sleep(_PAUSE)

    async def close(self) -> None:
        """Close all channels; calls under way end with an error."""
        for index, channel in enumerate(self._channels):
            if channel is not None:
                self._channels[index] = None
                await channel.close(None)

    def _channel(self, index: int) -> grpc.aio.Channel:
        channel = self._channels[index]
        if channel is None:
            target, secure = self._targets[index]
            channel = self._secure(target) if secure else grpc.aio.insecure_channel(target, options=_OPTIONS)
            self._channels[index] = channel
        return channel

    def _secure(self, target: str) -> grpc.aio.Channel:
        tls = self._tls
        assert tls is not None  # checked by __init__
        credentials = grpc.ssl_channel_credentials(
            root_certificates=tls.ca.read_bytes(),
            private_key=tls.key.read_bytes() if tls.key else None,
            certificate_chain=tls.cert.read_bytes() if tls.cert else None,
        )
        name = [("grpc.ssl_target_name_override", tls.server_name)] if tls.server_name else []
        return grpc.aio.secure_channel(target, credentials, options=[*_OPTIONS, *name])


async def _connected(channel: grpc.aio.Channel, deadline: float) -> bool:
    """Wait until the channel is connected or has failed to."""
    while True:
        state = channel.get_state(try_to_connect=True)
        if state is grpc.ChannelConnectivity.READY:
            return True
        left = deadline - time.monotonic()
        if left <= 0 or state is grpc.ChannelConnectivity.SHUTDOWN:
            return False
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            return False
        try:
            async with asyncio.timeout(left):
                await channel.wait_for_state_change(state)
        except TimeoutError:
            return False
