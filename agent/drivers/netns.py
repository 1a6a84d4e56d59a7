"""Workload namespaces: /run/netns/<tenant>.<namespace>, made and deleted by us. Layer netns, key: the name.

Ours is one whose loopback device has our mark as its alias. Others' are never touched, whatever their names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from agent.drivers import rtnetlink
from agent.drivers.allow import PlacementRefused
from agent.drivers.base import Failure
from agent.drivers.kernel import Kernel, NetnsMissing, is_empty_file, mark
from agent.drivers.memory import Memory
from agent.drivers.nsthread import NetnsThread
from agent.objects import Namespace

Outcome = tuple[Namespace | None, Failure | None]


class NetnsDriver:
    """See `agent.drivers.base.Driver`."""

    def __init__(self, thread: NetnsThread) -> None:
        self._thread = thread
        self._memory: Memory[Namespace] = Memory()

    async def read(self) -> dict[str, Namespace]:
        """Our namespaces; one whose loopback device is down, or that has lost its mark, has a flaw."""

        def job(kernel: Kernel) -> dict[str, Namespace]:
            kernel.drop_stale()
            found = {name: space for name in kernel.names() if (space := _find(kernel, name)) is not None}
            return self._memory.saw_all(found)

        return await self._thread.run(job)

    async def read_some(self, names: Collection[str]) -> dict[str, Namespace]:
        """Those of these that are there and ours."""
        return await self._thread.run(lambda kernel: _find_some(kernel, names))

    async def changed(self, names: Collection[str]) -> set[str]:
        """Which of these are not as they were last read or written by this driver."""
        return await self._thread.look(lambda kernel: self._memory.differing(names, _find_some(kernel, names)))

    async def apply(self, write: Mapping[str, Namespace], delete: Collection[str]) -> Mapping[str, Failure]:
        """Make and delete them. A namespace that processes are in loses its name and ends with the last of them.

        Reasons: NetnsForeign (there is one of that name which is not ours), NetnsRefused (by the kernel).
        """

        def job(kernel: Kernel) -> dict[str, Failure]:
            outcomes = {name: _delete(kernel, name) for name in delete}
            outcomes |= {name: _write(kernel, want) for name, want in write.items()}
            return self._memory.wrote(outcomes)

        return await self._thread.run(job)


def _find_some(kernel: Kernel, names: Collection[str]) -> dict[str, Namespace]:
    kernel.drop_stale()
    return {name: space for name in names if (space := _find(kernel, name)) is not None}


def _find(kernel: Kernel, name: str) -> Namespace | None:
    path = kernel.path(name)
    if name.count(".") != 1 or not kernel.is_netns(path):
        return None
    try:
        if not kernel.is_ours(path):
            return None
        with kernel.enter(path) as inside:
            loopback = rtnetlink.link_at(inside, 1)
    except (NetnsMissing, PlacementRefused):
        return None
    if loopback is None or not loopback.up:
        return Namespace(name, flaw="the loopback device is down")
    return Namespace(name, flaw="" if loopback.alias == mark(name) else "it has lost its mark")


def _write(kernel: Kernel, want: Namespace) -> Outcome:
    name = want.name
    path = kernel.path(name)
    try:
        if not kernel.is_netns(path):
            if kernel.exists(path) and not is_empty_file(path):
                return None, Failure("NetnsForeign", f"{path} is not a namespace", retriable=True)
            if want.spare and kernel.is_netns(kernel.path(want.spare)) and kernel.is_ours(kernel.path(want.spare)):
                kernel.rename(want.spare, name)
            else:
                kernel.create(name)
            return Namespace(name), None
        if not kernel.is_ours(path):
            return None, Failure("NetnsForeign", f"{path} was not made by this agent")
        with kernel.enter(path) as inside:
            inside.check(rtnetlink.set_link(1, flags=rtnetlink.UP, change=rtnetlink.UP, alias=mark(name)))
    except PlacementRefused as refused:
        return None, refused.failure()
    except (OSError, NetnsMissing) as error:
        return None, Failure("NetnsRefused", str(error))
    return Namespace(name), None


def _delete(kernel: Kernel, name: str) -> Outcome:
    path = kernel.path(name)
    try:
        if kernel.is_netns(path) and not kernel.is_ours(path):
            return None, None  # somebody's by now, and so not ours to delete
        if kernel.is_netns(path) or is_empty_file(path):
            kernel.remove(name)
    except PlacementRefused:
        return None, None
    except (OSError, NetnsMissing) as error:
        return Namespace(name), Failure("NetnsRefused", str(error))
    return None, None
