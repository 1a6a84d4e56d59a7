"""What the lab asks the controller's API: that its hosts are known, and when they are ready."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from tealnet.lab.controller import NAME, Controller
from tealnet.lab.errors import LabError
from tealnet.lab.host import Host
from tealnet.lab.wait import wait_for

if TYPE_CHECKING:
    from tealnet.client import Client

READY_SECONDS = 60.0


def client(settings: dict[str, Any]) -> Client:
    """The SDK as the lab's admin. Imported late: a lab without daemons needs no gRPC."""
    from tealnet.client import Client, Context

    names = ("server", "ca", "cert", "key", "server_name")
    return Client(Context(**{name: settings[name] for name in names}))


def wait_serving(teal: Client, controllers: Sequence[Controller]) -> None:
    """Wait until a controller answers.

    Raises:
        LabError: one has ended, or none answers for a minute; with the last error.
    """
    from tealnet.client import ApiError

    last, daemons = "", [controller.process(NAME) for controller in controllers]

    def answers() -> bool:
        nonlocal last
        if not all(daemon and daemon.alive() for daemon in daemons):
            raise LabError("the controller has ended")
        try:
            teal.status()
        except ApiError as error:
            last = str(error)
            return False
        return True

    try:
        wait_for(answers, seconds=READY_SECONDS, what="the controller's API", every=0.05)
    except LabError as error:
        raise LabError(f"{error}: {last}" if last else str(error)) from None


def register_hosts(teal: Client, hosts: Iterable[Host]) -> None:
    """Make the Host objects. Raises LabError with what the API says."""
    from tealnet import kinds
    from tealnet.client import ApiError
    from tealnet.v1 import host_pb2

    for host in hosts:
        try:
            teal.create(kinds.HOST, ident=host.name, body=host_pb2.Host(vtep=host.vtep, labels={"lab": "true"}))
        except ApiError as error:
            raise LabError(f"host {host.name}: {error.message}") from None


def unregister_host(teal: Client, name: str) -> None:
    """Delete a Host object. Raises LabError with what the API says, for example which ports are there."""
    from tealnet.client import ApiError

    try:
        teal.delete(f"hosts/{name}")
    except ApiError as error:
        raise LabError(f"host {name}: {error.message}") from None


def wait_ready(teal: Client, hosts: Iterable[Host]) -> None:
    """Wait until the agents of hosts are in session and in sync. Raises LabError that names those who are not."""
    from tealnet.client import ApiError
    from tealnet.v1 import host_pb2

    missing = {host.name for host in hosts}

    def ready() -> bool:
        for name in sorted(missing):
            try:
                if teal.get(f"hosts/{name}").status.state == host_pb2.Host.STATE_READY:
                    missing.discard(name)
            except ApiError:
                return False  # the controller is still settling; the deadline decides
        return not missing

    try:
        wait_for(ready, seconds=READY_SECONDS, what="agents", every=0.05)
    except LabError as error:
        raise LabError(f"{error}: {', '.join(sorted(missing))}; see `teal lab logs HOST agent`") from None
