"""The controller with its embedded store runs as an ordinary user without any capability."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from tealnet.core.pki import Ca, Leaf
from tealnet.v1 import system_pb2, system_pb2_grpc, tenant_pb2, tenant_pb2_grpc

NOBODY = 65534
ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_as_an_ordinary_user_it_serves_and_stores() -> None:
    directory = Path(tempfile.mkdtemp(prefix="tn"))
    try:
        ca = Ca.create("tealnet.local")
        ca.save(directory)
        ca.issue("controller", dns=["controller"]).save(directory, "controller")
        for path in (directory, *directory.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        asyncio.run(_serve(directory, ca, ca.issue("admin")))
    finally:
        shutil.rmtree(directory)


# The interpreter and the sources may lie where nobody else can look: they are shown elsewhere.
SHOW = """
set -e
mkdir "$1/python" "$1/source"
mount --bind "$2" "$1/python"
mount --bind "$3" "$1/source"
shift 3
exec "$@"
"""


def command(directory: Path) -> list[str]:
    """The controller without root's power, in a mount namespace of its own."""
    drop = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    python = f"{directory}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    show = ["unshare", "--mount", "sh", "-c", SHOW, "sh", str(directory), sys.base_prefix, str(ROOT)]
    return [*show, "setpriv", *drop, "--no-new-privs", python, "-m", "controller"]


def status_of(pid: int) -> dict[str, list[str]]:
    """Of a process, by proc(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.split() for key, _, value in (line.partition(":") for line in lines)}


def etcd_pid(directory: Path) -> int:
    return int((directory / "data" / "etcd" / "etcd.pid").read_text().split()[0])


async def _serve(directory: Path, ca: Ca, admin: Leaf) -> None:
    flags = {
        "listen": f"unix:{directory}/api.sock", "join_listen": "", "metrics_listen": "", "etcd_fsync": "off",
        "data_dir": f"{directory}/data", "ca": f"{directory}/ca.crt", "cert": f"{directory}/controller.crt",
        "key": f"{directory}/controller.key",
    }  # fmt: skip
    env = {f"TEALNET_{key.upper()}": value for key, value in flags.items()}
    env["LD_LIBRARY_PATH"] = f"{directory}/python/lib"
    packages = Path(grpc.__file__).parents[1].relative_to(ROOT)
    env["PYTHONPATH"] = f"{directory}/source:{directory}/source/{packages}"
    process = await asyncio.create_subprocess_exec(
        *command(directory),
        env={**os.environ, **env},
        cwd="/",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        credentials = grpc.ssl_channel_credentials(ca.cert_pem, admin.key_pem, admin.cert_pem)
        options = [("grpc.ssl_target_name_override", "controller"), ("grpc.use_local_subchannel_pool", 1)]
        async with grpc.aio.secure_channel(flags["listen"], credentials, options) as channel:
            tenants: Any = tenant_pb2_grpc.TenantServiceStub(channel)
            request = tenant_pb2.CreateTenantRequest(tenant_id="acme")
            made = await tenants.CreateTenant(request, timeout=30, wait_for_ready=True)
            assert made.name == "tenants/acme"
            system: Any = system_pb2_grpc.SystemServiceStub(channel)
            assert (await system.GetStatus(system_pb2.GetStatusRequest(), timeout=5)).etcd[0].healthy
        for pid in (process.pid, etcd_pid(directory)):
            status = status_of(pid)
            assert set(status["Uid"]) == {str(NOBODY)}
            assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")} == {0}
    except grpc.aio.AioRpcError as error:
        if process.returncode is None:
            process.kill()
        out, _ = await process.communicate()
        raise AssertionError(f"{error.details()}: {out.decode()[-2000:]}") from error
    finally:
        if process.returncode is None:
            process.terminate()
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-2000:]
