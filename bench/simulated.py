"""A host without devices: in session, takes every unit and says at once that it is applied.

Ports of other hosts cost ours flows and messages, whatever they are made of; so a thousand of them need no namespaces.
All of a process share one event loop in a thread: what they cost the processors is measured with what is looked at.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import grpc
import grpc.aio

from tealnet import kinds
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc
from tealnet.client import Client
from tealnet.core.pki import Ca
from tealnet.lab import Lab
from tealnet.v1 import host_pb2

T = TypeVar("T")
_PING = 0.4  # seconds; the controller waits 1.5
_FEATURES = ("colors", "security")


class SimulatedHost:
    """`name` becomes a host of the lab's controller; `close` ends its session."""

    def __init__(self, lab: Lab, client: Client, name: str, *, vtep: str) -> None:
        client.create(kinds.HOST, ident=name, body=host_pb2.Host(vtep=vtep))
        self.name = name
        self.vtep = vtep
        leaf = Ca.load(Path(lab.context["ca"]).parent).issue(f"host/{name}")
        self._credentials = grpc.ssl_channel_credentials(
            Path(lab.context["ca"]).read_bytes(), leaf.key_pem, leaf.cert_pem
        )
        _do(self._begin(lab))

    def close(self) -> None:
        """End the session."""
        _do(self._end())

    async def _begin(self, lab: Lab) -> None:
        self._channel = grpc.aio.secure_channel(
            lab.context["server"].split(",")[0],
            self._credentials,
            [
                ("grpc.ssl_target_name_override", lab.context["server_name"]),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._call = agent_pb2_grpc.AgentServiceStub(self._channel).Connect()
        self._order = asyncio.Lock()
        await self._say(pb.FromAgent(hello=self._hello()))
        self._tasks = [asyncio.create_task(job()) for job in (self._hear, self._ping)]

    async def _end(self) -> None:
        self._call.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._channel.close(None)

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            instance_uid=uuid4().hex, boot_id=str(uuid4()), agent_version="0", features=_FEATURES, vtep=self.vtep
        )

    async def _say(self, *messages: pb.FromAgent) -> None:
        async with self._order:
            for message in messages:
                await self._call.write(message)

    async def _hear(self) -> None:
        with suppress(grpc.RpcError):
            async for message in self._call:
                update = message.update
                if message.WhichOneof("message") == "update" and update.last:
                    ack = pb.Ack(revision=update.revision, applied_at=time.time_ns())
                    await self._say(pb.FromAgent(taken=pb.Taken(unit=update.unit)), pb.FromAgent(ack=ack))

    async def _ping(self) -> None:
        number = 0
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            while True:
                await asyncio.sleep(_PING)
                number += 1
                await self._say(pb.FromAgent(ping=pb.Ping(number=number, sent_at=time.time_ns())))


@cache
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="simulated-hosts", daemon=True).start()
    return loop


def _do(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(30)
