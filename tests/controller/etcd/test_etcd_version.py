"""An etcd of former times is refused by name, before anything is read of it or written to it."""

from __future__ import annotations

import re
from pathlib import Path

import grpc
import grpc.aio
import pytest

from controller.etcd import Etcd, StoreTooOld
from controller.etcd.limits import check_version
from controller.server import build
from controller.settings import Settings
from tealnet.etcdpb import etcd_pb2


@pytest.mark.parametrize(
    ("version", "is_taken"), [("3.3.25", False), ("2.3.8", False), ("3.4.0", True), ("3.6.0-rc.1", True), ("4.0", True)]
)
async def test_an_etcd_of_former_times_is_refused_by_name(tmp_path: Path, version: str, is_taken: bool) -> None:
    """Played: only its version is asked for."""

    async def status(request: etcd_pb2.StatusRequest, context: object) -> etcd_pb2.StatusResponse:
        return etcd_pb2.StatusResponse(version=version)

    handler = grpc.unary_unary_rpc_method_handler(
        status,
        request_deserializer=etcd_pb2.StatusRequest.FromString,
        response_serializer=etcd_pb2.StatusResponse.SerializeToString,
    )
    server, endpoint = grpc.aio.server(), f"unix:{tmp_path}/old"
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("etcdserverpb.Maintenance", {"Status": handler}),)
    )
    server.add_insecure_port(endpoint)
    await server.start()
    try:
        async with Etcd([endpoint]) as etcd:
            if is_taken:
                await check_version(etcd)
                return
            needed = f"etcd at {endpoint} is {version}: the controller works with 3.4 and newer"
            with pytest.raises(StoreTooOld, match=re.escape(needed)):
                await check_version(etcd)
            with pytest.raises(StoreTooOld):
                await build(Settings(etcd=(endpoint,)), etcd)
    finally:
        await server.stop(None)


async def test_the_etcd_here_is_new_enough(etcd: Etcd) -> None:
    await check_version(etcd)
