"""Reading and writing that was given up, over real gRPC: what comes after it is neither lost nor refused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from controller.line import Line
from tealnet.agent.v1 import agent_pb2 as pb
from tealnet.agent.v1 import agent_pb2_grpc

LARGE = pb.ToAgent(refused=pb.Refused(text="x" * 32_000_000))  # more than anybody takes unread
LAST = pb.ToAgent(refused=pb.Refused(reason="Revoked"))
Call = grpc.aio.StreamStreamCall[pb.FromAgent, pb.ToAgent]


async def talk(
    directory: Path, serve: Callable[[Line], Awaitable[None]], agent: Callable[[Call], Coroutine[Any, Any, None]]
) -> None:
    """One call, from `agent` to `serve`; what either raises is raised."""
    served: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def connect(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        line = Line(context)
        try:
            await serve(line)
            served.set_result(None)
        except BaseException as error:
            served.set_exception(error)
        finally:
            line.close()

    handler = grpc.stream_stream_rpc_method_handler(
        connect, request_deserializer=pb.FromAgent.FromString, response_serializer=None
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tealnet.agent.v1.AgentService", {"Connect": handler})]
    )
    server.add_insecure_port(f"unix:{directory}/s")
    await server.start()
    try:
        async with (
            asyncio.timeout(20),
            grpc.aio.insecure_channel(f"unix:{directory}/s", [("grpc.max_receive_message_length", -1)]) as channel,
        ):
            call = agent_pb2_grpc.AgentServiceStub(channel).Connect()
            async with asyncio.TaskGroup() as both:
                both.create_task(agent(call))
                await served
    finally:
        await server.stop(0)


async def given_up(work: Awaitable[Any]) -> None:
    """Wait a moment for what does not end, then cancel it."""
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            await work
            raise AssertionError("was done at once")


async def test_what_is_written_after_a_write_that_was_given_up_arrives(tmp_path: Path) -> None:
    read = asyncio.Event()

    async def serve(line: Line) -> None:
        await line.read()
        await given_up(line.write(LARGE.SerializeToString()))
        read.set()
        await line.write(LAST.SerializeToString())
        assert await line.read() is None

    async def agent(call: Call) -> None:
        await call.write(pb.FromAgent(hello=pb.Hello()))
        await read.wait()
        assert await call.read() == LARGE
        assert await call.read() == LAST
        await call.done_writing()

    await talk(tmp_path, serve, agent)


async def test_what_comes_after_a_read_that_was_given_up_is_read(tmp_path: Path) -> None:
    said = asyncio.Event()

    async def serve(line: Line) -> None:
        await given_up(line.read())
        said.set()
        message = await line.read()
        assert message is not None and message.ping.number == 7
        assert await line.read() is None

    async def agent(call: Call) -> None:
        await said.wait()
        await call.write(pb.FromAgent(ping=pb.Ping(number=7)))
        await call.done_writing()

    await talk(tmp_path, serve, agent)
