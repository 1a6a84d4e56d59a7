"""A lab: hosts, a controller and the networks between them, on one machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import yaml

from tealnet.lab import api, needs, pki, place, process
from tealnet.lab.controller import CONTROLLERS_MAX, Controller, controller_name
from tealnet.lab.controller import NAME as CONTROLLER
from tealnet.lab.errors import LabError
from tealnet.lab.etcd import ETCD, MEMBERS_MAX, Member, certify, member_name
from tealnet.lab.fabric import HOSTS_MAX, Direction, Fabric, Network
from tealnet.lab.host import AGENT, Family, Host, Parts
from tealnet.lab.machine import END_SECONDS, Machine, tail
from tealnet.lab.process import Process

if TYPE_CHECKING:
    from tealnet.client import Client

_AT_ONCE = 8

Note = Callable[[str], None]


def _silent(_: str) -> None:
    pass


class Lab:
    """A lab that exists; `Lab.up` makes one, `Lab.load` finds one."""

    def __init__(self, directory: Path, content: dict[str, Any]) -> None:
        self.directory = directory
        self.name = directory.name
        self.mtu: int = content["mtu"]
        self.parts = Parts(content["parts"])
        self.family = Family(content["family"])
        self.ready: bool = content["ready"]
        self._hosts = self._read_hosts(content)
        machines = directory / "machines"
        self.fabric = Fabric(machines / "fabric")
        count = content.get("etcd", 0)
        self.members = [
            Member(machines / member_name(index), index=index, count=count) for index in range(1, count + 1)
        ]
        """Machines of the etcd cluster; none: the controller has an embedded one."""
        self.controllers = [
            Controller(machines / controller_name(index), lab=directory, index=index, members=self.members)
            for index in range(1, content.get("controllers", 1) + 1)
        ]
        self.controller = self.controllers[0]

    # -- up and down

    @classmethod
    def up(
        cls,
        name: str = "default",
        *,
        hosts: int = 3,
        mtu: int = 1500,
        family: Family = Family.V4,
        parts: Parts = Parts.ALL,
        controllers: int = 1,
        etcd: int = 0,
        note: Note = _silent,
    ) -> Self:
        """Make a lab with hosts h1, h2, … and wait until all of it works; what fails is taken down again.

        `mtu` is the underlay's in bytes, `family` that of the tunnel addresses; `note` hears of each step. `etcd` is
        the number of members of a cluster of its own (0: embedded in the one controller).

        Raises:
            LabError: the lab exists, something to run it is missing, or a part did not start.
        """
        needs.check()
        if not 0 <= hosts <= HOSTS_MAX:
            raise LabError(f"{hosts} hosts: a lab has 0 to {HOSTS_MAX}")
        if not 1 <= controllers <= CONTROLLERS_MAX or not 0 <= etcd <= MEMBERS_MAX:
            raise LabError(f"a lab has 1 to {CONTROLLERS_MAX} controllers and 0 to {MEMBERS_MAX} members of etcd")
        if controllers > 1 and not etcd:
            raise LabError("several controllers need an etcd of their own: --etcd 1 or --etcd 3")
        directory = place.directory(name)
        try:
            directory.parent.mkdir(parents=True, exist_ok=True)
            directory.mkdir(mode=0o711)
        except FileExistsError:
            raise LabError(f"lab {name!r} exists; `teal lab down --name {name}` removes it") from None
        except OSError as error:
            raise LabError(f"cannot make {error.filename}: {error.strerror}; TEALNET_LAB_DIR is where") from None
        with place.locked(directory):
            content = {"mtu": mtu, "parts": parts, "family": family, "ready": False, "hosts": {}}
            lab = cls(directory, {**content, "controllers": controllers, "etcd": etcd})
            try:
                lab._build(hosts, note=note)
            except BaseException:
                lab._destroy()
                raise
        return lab

    @classmethod
    def load(cls, name: str = "default") -> Self:
        """A lab that was made before.

        Raises:
            LabError: there is none, or its making was interrupted.
        """
        directory = place.directory(name)
        try:
            return cls(directory, json.loads((directory / "lab.json").read_text()))
        except FileNotFoundError:
            if directory.exists():
                raise LabError(f"lab {name!r} was never finished; `teal lab down --name {name}` removes it") from None
            others = ", ".join(cls.names())
            there = f"there are: {others} (--name chooses)" if others else f"`teal lab up --name {name}` makes one"
            raise LabError(f"no lab {name!r}; {there}") from None

    @staticmethod
    def remove(name: str = "default") -> None:
        """Take a lab down, however broken or half-made it is. A lab that does not exist is down.

        Raises:
            LabError: something of it does not end, or another command is working on it.
        """
        directory = place.directory(name)
        if directory.exists():
            with place.locked(directory):
                destroy(directory)

    @staticmethod
    def names() -> list[str]:
        """The labs there are."""
        base = place.base()
        return sorted(entry.name for entry in base.iterdir() if entry.is_dir()) if base.is_dir() else []

    def down(self) -> None:
        """Remove everything: processes, namespaces, links, mounts and files."""
        self.remove(self.name)

    def _destroy(self) -> None:
        destroy(self.directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def _build(self, hosts: int, *, note: Note) -> None:
        for number in range(1, hosts + 1):
            self._hosts[f"h{number}"] = self._host(f"h{number}", number=number, parts=self.parts)
        self._save()
        for machine in (self.fabric, *self.members, *self.controllers, *self.hosts):
            machine.directory.mkdir(parents=True)
        note("networks")
        self.fabric.build()
        if self.parts is Parts.ALL:
            note("certificates and controllers")
            self._start_controllers()
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for host in pool.map(self._build_host, self.hosts):
                note(f"host {host.name}")
        if self.parts is Parts.ALL:
            self._start_agents(self.hosts, note=note)
        self.ready = True
        self._save()

    def _start_controllers(self) -> None:
        pki.create(self.directory / "pki", self.controllers)
        if self.members:
            certify(self.directory / "pki" / ETCD, members=self.members, controllers=list(self.controllers))
        for member in self.members:
            member.build(self.fabric)
            member.start(ETCD)
        for controller in self.controllers:
            controller.build(self.fabric)
            controller.configure()
            controller.start(CONTROLLER)
        (self.directory / "context.yaml").write_text(yaml.safe_dump(self.context, sort_keys=False))

    def _build_host(self, host: Host) -> Host:
        host.build(self.fabric, mtu=self.mtu)
        return host

    def _start_agents(self, hosts: Sequence[Host], *, note: Note) -> None:
        note("waiting for the controller")
        with self.client() as teal:
            self._or_words(lambda: api.wait_serving(teal, self.controllers))
            api.register_hosts(teal, hosts)
            for host in hosts:
                pki.equip(self.directory / "pki", host)
                host.configure_agent(servers=[controller.server for controller in self.controllers])
                host.start(AGENT)
            note("waiting for the agents")
            api.wait_ready(teal, hosts)

    def _or_words(self, wait: Callable[[], None]) -> None:
        try:
            wait()
        except LabError as error:
            log = self.controller.disk("/var/log/tealnet") / "controller.log"
            raise LabError(f"{error}\nthe controller's log ends:\n{tail(log)}") from None

    # -- its parts

    @property
    def context(self) -> dict[str, Any]:
        """How the admin reaches the API from this machine: the settings of a context of the `teal` command."""
        pki = self.directory / "pki"
        return {
            "server": ",".join(f"unix:{controller.socket}" for controller in self.controllers),
            "server_name": CONTROLLER,
            "ca": str(pki / "ca.crt"),
            "cert": str(pki / "admin.crt"),
            "key": str(pki / "admin.key"),
            "lab": self.name,
        }

    def client(self) -> Client:
        """The SDK as admin of this lab; close it, or use it with `with`."""
        return api.client(self.context)

    @property
    def hosts(self) -> list[Host]:
        """All hosts in order of their numbers."""
        return sorted(self._hosts.values(), key=lambda host: host.number)

    def host(self, name: str) -> Host:
        """A host by name. Raises LabError that names those there are."""
        if name not in self._hosts:
            raise LabError(f"no host {name!r} in lab {self.name!r}; there are: {', '.join(self._hosts) or 'none'}")
        return self._hosts[name]

    def machine(self, name: str) -> Host | Controller | Member:
        """A host, or a controller or member of etcd under that name."""
        if self.parts is Parts.ALL:
            central: list[Controller | Member] = [*self.controllers, *self.members]
            for machine in central:
                if machine.name == name:
                    return machine
        return self.host(name)

    def machines(self) -> list[str]:
        """Names that `machine` knows."""
        return [*self._hosts, *([CONTROLLER] if self.parts is Parts.ALL else [])]

    def argv_in_netns(self, host: str, path: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in the namespace at `path` of a host."""
        return self.host(host).argv(argv, netns=path)

    def add_host(
        self, name: str = "", *, parts: Parts | None = None, switch_env: Mapping[str, str] | None = None
    ) -> Host:
        """One more host; by default h and the first free number, with as much as the others have.

        `switch_env`: the environment of its Open vSwitch, if it is not to be that of `deploy/ovs-vswitchd.conf`.

        Raises:
            LabError: the name is taken, the lab is full, or a part did not start (the host is removed again).
        """
        with self._changing():
            taken = {host.number for host in self.hosts}
            number = next(
                (n for n in range(1, HOSTS_MAX + 1) if n not in taken and (name or f"h{n}" not in self._hosts)), 0
            )
            if not number:
                raise LabError(f"a lab has at most {HOSTS_MAX} hosts")
            name = name or f"h{number}"
            place.check_name(name)
            if name in (*self._hosts, "fabric") or name.startswith((CONTROLLER, ETCD)):
                raise LabError(f"the name {name!r} is taken")
            chosen = parts or self.parts
            if chosen is Parts.ALL and self.parts is not Parts.ALL:
                raise LabError(f"lab {self.name!r} has no controller: add hosts without an agent")
            host = self._hosts[name] = self._host(name, number=number, parts=chosen)
            if switch_env is not None:
                host.switch_env = switch_env
            self._save()
            try:
                host.directory.mkdir()
                self._build_host(host)
                if chosen is Parts.ALL:
                    self._start_agents([host], note=_silent)
            except BaseException:
                self._drop(host)
                raise
            return host

    def remove_host(self, name: str) -> None:
        """Delete the Host object, which the API refuses while ports are on it, and take the host away.

        Raises:
            LabError: no such host, or the API's refusal.
        """
        with self._changing():
            host = self.host(name)
            if host.parts is Parts.ALL:
                with self.client() as teal:
                    api.unregister_host(teal, name)
            self._drop(host)

    def lose_host(self, name: str) -> None:
        """Take a host away without asking anybody, like a fire. Its object stays."""
        with self._changing():
            self._drop(self.host(name))

    def _drop(self, host: Host) -> None:
        host.destroy()
        del self._hosts[host.name]
        self._save()

    # -- what goes wrong on purpose

    def kill(self, name: str, what: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a process of a host, or of `controller`, and wait until it is gone. Nothing restarts it but `start`.

        Processes: agent, ovsdb-server, ovs-vswitchd; controller; etcd (an embedded one is started again by its
        controller).
        """
        self.machine(name).kill(what, number)

    def stop(self, name: str, what: str) -> None:
        """Freeze a process (SIGSTOP)."""
        self.machine(name).signal(what, signal.SIGSTOP)

    def cont(self, name: str, what: str) -> None:
        """Let a frozen process go on."""
        self.machine(name).signal(what, signal.SIGCONT)

    def start(self, name: str, what: str) -> Process:
        """Start a process that has ended; Open vSwitch's are waited for until they listen."""
        return self.machine(name).start(what)

    def cut(self, name: str, network: Network = Network.UNDERLAY, *, direction: Direction = Direction.BOTH) -> None:
        """Lose every frame of a machine on a network, silently; only hosts are on the underlay."""
        self.fabric.cut(self._on(name, network), network, direction=direction)

    def heal(self, name: str, network: Network = Network.UNDERLAY) -> None:
        """Carry them again."""
        self.fabric.heal(self._on(name, network), network)

    def _on(self, name: str, network: Network) -> int:
        machine = self.machine(name)
        if network is Network.UNDERLAY and not isinstance(machine, Host):
            raise LabError(f"{name} is on the management network only")
        return machine.number

    # -- what it is like

    def status(self) -> dict[str, Any]:
        """The lab as a JSON object: machines, addresses, processes with their states, cuts."""
        cuts = self.fabric.cuts() if self.fabric.alive() else {}
        machines = [{**host.look(), "vtep": host.vtep, "cut": cuts.get(host.number, [])} for host in self.hosts]
        if self.parts is Parts.ALL:
            central: list[Controller | Member] = [*self.controllers, *self.members]
            machines[:0] = [{**machine.look(), "cut": cuts.get(machine.number, [])} for machine in central]
        return {
            "name": self.name,
            "directory": str(self.directory),
            "mtu": self.mtu,
            "ready": self.ready,
            "networks": self.fabric.alive(),
            "machines": machines,
        }

    def logs(self, name: str, what: str = "") -> list[Path]:
        """The log files of a machine, or of one of its processes. Raises LabError if there is none of that name."""
        machine = self.machine(name)
        # etcd's log lies in the controller's data directory.
        places = ("/var/log/openvswitch", "/var/log/tealnet", "/var/lib/tealnet")
        found = [
            path
            for where in places
            for path in sorted(machine.disk(where).rglob("*"))
            if path.suffix in (".log", ".out")
        ]
        chosen = [path for path in found if not what or path.stem == what]
        if what and not chosen:
            known = ", ".join(dict.fromkeys(path.stem for path in found)) or "none"
            raise LabError(f"no log of {what!r} on {name}; there are: {known}")
        return chosen

    # -- files

    def _host(self, name: str, *, number: int, parts: Parts) -> Host:
        where = self.directory / "machines" / name
        return Host(name, where, number=number, parts=parts, family=self.family)

    def _read_hosts(self, content: dict[str, Any]) -> dict[str, Host]:
        return {
            name: self._host(name, number=row["number"], parts=Parts(row["parts"]))
            for name, row in content["hosts"].items()
        }

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        """Alone, and from what the file says now."""
        with place.locked(self.directory):
            self._hosts = self._read_hosts(json.loads((self.directory / "lab.json").read_text()))
            yield

    def _save(self) -> None:
        place.write_json(
            self.directory / "lab.json",
            {
                "name": self.name,
                "mtu": self.mtu,
                "parts": self.parts,
                "family": self.family,
                "ready": self.ready,
                "controllers": len(self.controllers),
                "etcd": len(self.members),
                "hosts": {host.name: {"number": host.number, "parts": host.parts} for host in self.hosts},
            },
        )


def destroy(directory: Path) -> None:
    """End every machine of the lab in `directory` at once, then remove its files.

    Raises:
        LabError: something does not end; the directory stays, so that it can be tried again.
    """
    machines = [Machine(entry.name, entry) for entry in (directory / "machines").glob("*") if entry.is_dir()]
    holders = [holder for machine in machines if (holder := machine.holder())]
    left = process.end(holders, seconds=END_SECONDS)
    if left:
        raise LabError(f"processes {', '.join(str(one.pid) for one in left)} do not end")
    shutil.rmtree(directory, ignore_errors=True)
    with contextlib.suppress(OSError):  # other labs are there
        directory.parent.rmdir()
