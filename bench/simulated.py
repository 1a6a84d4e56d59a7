"""A host without devices: in session, takes every unit and says at once that it is applied.

Ports of other hosts cost ours flows and messages, whatever they are made of; so a thousand of them need no namespaces.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import grpc

from tealnet import kinds
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc
from tealnet.client import Client
from tealnet.core.pki import Ca
from tealnet.lab import Lab
from tealnet.v1 import host_pb2

_PING = 0.4  # seconds; the controller waits 1.5
_FEATURES = ("colors", "security")


class SimulatedHost:
    """`name` becomes a host of the lab's controller; `close` ends its session."""

    def __init__(self, lab: Lab, client: Client, name: str, *, vtep: str) -> None:
        client.create(kinds.HOST, ident=name, body=host_pb2.Host(vtep=vtep))
        self.name = name
        self.vtep = vtep
        leaf = Ca.load(Path(lab.context["ca"]).parent).issue(f"host/{name}")
        ca = Path(lab.context["ca"]).read_bytes()
        self._channel = grpc.secure_channel(
            lab.context["server"].split(",")[0],
            grpc.ssl_channel_credentials(ca, leaf.key_pem, leaf.cert_pem),
            [
                ("grpc.ssl_target_name_override", lab.context["server_name"]),
                ("grpc.max_receive_message_length", 16 << 20),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._say: queue.SimpleQueue[pb.FromAgent | None] = queue.SimpleQueue()
        self._over = threading.Event()
        self._call = agent_pb2_grpc.AgentServiceStub(self._channel).Connect(self._messages())
        self._say.put(pb.FromAgent(hello=self._hello()))
        self._threads = [threading.Thread(target=job, daemon=True) for job in (self._hear, self._ping)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the session."""
        self._over.set()
        self._say.put(None)
        self._call.cancel()
        for thread in self._threads:
            thread.join(5)
        self._channel.close()

    def _hello(self) -> pb.Hello:
        return pb.Hello(
            instance_uid=uuid4().hex, boot_id=str(uuid4()), agent_version="0", features=_FEATURES, vtep=self.vtep
        )

    def _messages(self) -> Iterator[pb.FromAgent]:
        while (message := self._say.get()) is not None:
            yield message

    def _hear(self) -> None:
        with suppress(grpc.RpcError):
            for message in self._call:
                update = message.update
                if message.WhichOneof("message") == "update" and update.last:
                    self._say.put(pb.FromAgent(taken=pb.Taken(unit=update.unit)))
                    ack = pb.Ack(revision=update.revision, applied_at=time.time_ns())
                    self._say.put(pb.FromAgent(ack=ack))

    def _ping(self) -> None:
        number = 0
        while not self._over.wait(_PING):
            number += 1
            self._say.put(pb.FromAgent(ping=pb.Ping(number=number, sent_at=time.time_ns())))
