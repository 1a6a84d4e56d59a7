"""The API as the server itself describes it (gRPC server reflection): nothing here knows a method by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

Request: Any = reflection_pb2.ServerReflectionRequest


@dataclass(frozen=True)
class Method:
    """One method: its path on the wire, the service's and its own name, and the messages' descriptors."""

    path: str
    service: str  # without its package: PortService
    name: str
    package: str
    takes: Any
    gives: Any
    streams_in: bool
    streams_out: bool

    def request(self) -> Any:
        """An empty request."""
        return message_factory.GetMessageClass(self.takes)()

    def call(self, channel: grpc.aio.Channel) -> Any:
        """The method on a channel."""
        kind = f"{'stream' if self.streams_in else 'unary'}_{'stream' if self.streams_out else 'unary'}"
        decode = message_factory.GetMessageClass(self.gives).FromString
        return getattr(channel, kind)(
            self.path, request_serializer=lambda m: m.SerializeToString(), response_deserializer=decode
        )


async def methods(channel: grpc.aio.Channel) -> list[Method]:
    """Every method of every service that a server has."""
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()

    async def ask(request: Any) -> Any:
        await call.write(request)
        return await call.read()

    pool, known = DescriptorPool(), set[str]()

    async def learn(answer: Any) -> None:
        for raw in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            if file.name in known:
                continue
            known.add(file.name)
            for needed in file.dependency:
                if needed not in known:
                    await learn(await ask(Request(file_by_filename=needed)))
            pool.Add(file)

    services = [s.name for s in (await ask(Request(list_services=""))).list_services_response.service]
    found: list[Method] = []
    for full in services:
        await learn(await ask(Request(file_containing_symbol=full)))
        service = pool.FindServiceByName(full)
        found.extend(
            Method(
                path=f"/{full}/{method.name}",
                service=service.name,
                name=method.name,
                package=full.rpartition(".")[0],
                takes=method.input_type,
                gives=method.output_type,
                streams_in=method.client_streaming,
                streams_out=method.server_streaming,
            )
            for method in service.methods
        )
    await call.done_writing()
    return found


Path = tuple[str, ...]


def strings(descriptor: Any, path: Path = (), depth: int = 0) -> Iterator[Path]:
    """The paths of all string fields that a message can hold, those of messages in it included."""
    for field in descriptor.fields:
        inner = field.message_type
        if inner is None and field.type == field.TYPE_STRING:
            yield (*path, field.name)
        elif inner is not None and not inner.GetOptions().map_entry and depth < 6:
            yield from strings(inner, (*path, field.name), depth + 1)


def put(message: Any, path: Path, value: str) -> None:
    """Set one string field; lists on the way get (or change) their first element."""
    *way, last = path
    for name in way:
        message = getattr(message, name)
        if hasattr(message, "add"):
            message = message[0] if message else message.add()
        else:
            message.SetInParent()
    if isinstance(getattr(message, last), str):
        setattr(message, last, value)
    else:
        getattr(message, last)[:] = [value]
