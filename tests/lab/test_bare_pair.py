"""docs/operations.md, followed step by step: two bare machines and a controller become a pair that carries packets."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tealnet.lab import Host, Lab, Network, Parts
from tealnet.lab.controller import NAME as CONTROLLER
from tealnet.lab.host import DATABASE, SCHEMA, python_env
from tealnet.lab.machine import tail
from tealnet.lab.wait import wait_for

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

DEPLOY = Path(__file__).parents[2] / "deploy"
ADDRESS = "192.0.2.254"  # of the controller, which is also the hosts' default gateway
WHOLE_WIRE = ["ethtool", "-K", "eth0", "tx", "off"]  # a veth pair would leave checksums to the last reader


class Site:
    """A lab of machines that have nothing but addresses, and the admin's shell."""

    def __init__(self, lab: Lab, home: Path) -> None:
        self.lab = lab
        self.home = home
        self.pki = home / "pki"
        self.api = f"unix:{lab.directory / 'api.sock'}"

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, **python_env(), "TEALNET_CONFIG": str(self.home / "config.yaml"), "COLUMNS": "200"}
        argv = [sys.executable, "-m", "tealnet.cli.main", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env)

    def teal(self, *words: str) -> str:
        done = self.run(*words)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def start_controller(self) -> None:
        controller, lab = self.lab.controller, self.lab
        self.teal("pki", "init", str(self.pki), "--trust-domain", "tealnet.local")
        self.teal("pki", "issue", str(self.pki), "admin", "--out", str(self.home))
        controller.build(lab.fabric)
        lab.fabric.connect(controller, 254, network=Network.UNDERLAY, device="eth0")
        controller.ip([f"address add {ADDRESS}/24 dev eth0", "link set eth0 up"])
        subprocess.run([*controller.enter(), *WHOLE_WIRE], check=True, capture_output=True)
        etc = controller.disk("/etc/tealnet")
        words = ("--ip", ADDRESS, "--dns", CONTROLLER, "--out", str(etc))
        self.teal("pki", "issue", str(self.pki), "controller", *words)
        for name in ("ca.crt", "ca.key"):
            (etc / name).write_bytes((self.pki / name).read_bytes())
            (etc / name).chmod(0o600)
        settings = (DEPLOY / "controller.yaml").read_text()
        (etc / "controller.yaml").write_text(
            f'{settings}\nlisten: ["0.0.0.0:7443", "{self.api}"]\nca_key: /etc/tealnet/ca.key\n'
        )
        controller.start(CONTROLLER)
        files = ("--ca", str(self.pki / "ca.crt"), "--cert", str(self.home / "admin.crt"))
        key = ("--key", str(self.home / "admin.key"))
        self.teal("context", "add", "site", "--server", self.api, "--server-name", CONTROLLER, *files, *key)

    def serves(self) -> bool:
        return self.run("status").returncode == 0


def agent_words(host: Host, *words: str) -> str:
    env = [f"{key}={value}" for key, value in python_env().items()]
    done = host.run(["env", *env, sys.executable, "-P", "-m", "agent", *words], seconds=60)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def make_machine(host: Host) -> None:
    """As Debian leaves it after `apt-get install openvswitch-switch`; its only way out is eth0."""
    host.output(["ovsdb-tool", "create", DATABASE, SCHEMA])
    host.start("ovsdb-server")
    host.output(["ovs-vsctl", "--no-wait", "init"])
    host.start("ovs-vswitchd")
    host.output(WHOLE_WIRE)
    host.output(["sh", "-ec", f"ip link set mgmt0 down; ip route add default via {ADDRESS}"])


def join(site: Site, host: Host) -> None:
    told = site.teal("host", "add", host.name, "--vtep", host.vtep)
    token, pin = re.findall(r"--(?:token|ca-sha256) (\S+)", told)
    words = ("--server", f"{ADDRESS}:7444", "--host", host.name, "--token", token, "--ca-sha256", pin)
    assert "has joined" in agent_words(host, "join", *words)


def start_agent(host: Host) -> None:
    example = (DEPLOY / "agent.yaml").read_text().replace("controller.example.org", ADDRESS)
    settings = f"{example}\nvtep: {host.vtep}\nuplink: eth0\ndatapath: netdev\n"
    settings += 'allow_netns: ["/run/netns/cni-*"]\nallow_device: ["tap*"]\n'
    (host.disk("/etc/tealnet") / "agent.yaml").write_text(settings)
    unit = (DEPLOY / "tealnet-agent.service").read_text()
    granted = re.findall(r"^CapabilityBoundingSet=(.*)$", unit, re.M)[0].lower().replace("cap_", "+").split()
    bounded = ["setpriv", "--no-new-privs", f"--bounding-set=-all,{','.join(granted)}"]
    argv = [*bounded, sys.executable, "-m", "agent", "run", "--config", "/etc/tealnet/agent.yaml"]
    host.spawn("agent", argv, log="/var/log/tealnet/agent.log", env=python_env())


def teal_on(site: Site, host: Host, *words: str) -> subprocess.CompletedProcess[str]:
    """The command on a host itself, as root there, which reaches the controller over the network."""
    home = host.disk("/etc/tealnet") / "admin"
    home.mkdir(exist_ok=True)
    for path in (site.pki / "ca.crt", site.home / "admin.crt", site.home / "admin.key"):
        (home / path.name).write_bytes(path.read_bytes())
    inside = "/etc/tealnet/admin"
    settings = {
        word: f"{inside}/{file}" for word, file in (("ca", "ca.crt"), ("cert", "admin.crt"), ("key", "admin.key"))
    }
    settings |= {"server": f"{ADDRESS}:7443", "server_name": CONTROLLER}
    (home / "config.yaml").write_text(json.dumps({"current": "site", "contexts": {"site": settings}}))
    env = [f"{key}={value}" for key, value in python_env().items()]
    argv = ["env", *env, f"TEALNET_CONFIG={inside}/config.yaml", sys.executable, "-P", "-m", "tealnet.cli.main", *words]
    return host.run(argv, seconds=60)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with Lab.up("test-bare", hosts=2, parts=Parts.BARE) as lab:
        site = Site(lab, tmp_path)
        site.start_controller()
        wait_for(site.serves, seconds=30, what="the controller", every=0.1)
        yield site


def test_two_bare_machines_become_a_pair(site: Site) -> None:
    for host in site.lab.hosts:
        make_machine(host)
        setup = ("underlay", "setup", "--uplink", "eth0", "--datapath", "netdev", "--check", f"{ADDRESS}:7443")
        assert host.vtep in agent_words(host, *setup)
        join(site, host)
        start_agent(host)
    granted = [word for kind in ("netns", "netns-path", "device") for word in ("--attach", kind)]
    site.teal("create", "tenant", "acme", *granted)
    site.teal("create", "network", "web", "-t", "acme", "--cidr", "10.0.0.0/24", "--cidr", "fd00::/64")
    first, second = site.lab.hosts
    try:
        for host, name in ((first, "web-1"), (second, "web-2")):
            site.teal("create", "port", name, "-t", "acme", "--network", "web", "--host", host.name, "--wait")
    except AssertionError as error:
        logs = [tail(host.disk("/var/log/tealnet") / "agent.log", 30) for host in site.lab.hosts]
        raise AssertionError(f"{error}\n{chr(10).join(logs)}\n{site.teal('status')}") from None
    addresses = re.findall(
        r"(?:10\.0\.0|fd00:)[0-9a-f.:]+", site.teal("get", "port", "web-2", "-t", "acme", "-o", "yaml")
    )
    assert len(addresses) == 2
    for address in addresses:
        done = first.run_in_netns("acme.web-1", ["ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address])
        assert ", 0% packet loss" in done.stdout, done.stdout
    done = teal_on(
        site, first, "exec", "acme/web-1", "--", "ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", addresses[0]
    )
    assert done.returncode == 0 and ", 0% packet loss" in done.stdout, done
    done = teal_on(site, second, "exec", "acme/web-1", "--", "true")
    assert done.returncode == 1 and "no namespace /run/netns/acme.web-1 on this machine; is this h1?" in done.stderr, (
        done
    )
    # Somebody else's namespace, as a CNI has it, and a device, as a VM has it.
    first.output(["ip", "netns", "add", "cni-1"])
    first.output(["ip", "tuntap", "add", "tap7", "mode", "tap"])
    on = ("-t", "acme", "--network", "web", "--host", first.name, "--wait")
    site.teal("create", "port", "pod", *on, "--path", "/run/netns/cni-1")
    site.teal("create", "port", "vm", *on, "--device", "tap7")
    done = first.run_in_netns("cni-1", ["ping", "-n", "-c", "2", "-i", "0.2", "-W", "2", addresses[0]])
    assert ", 0% packet loss" in done.stdout, done.stdout
    assert "tap7" in first.output(["ovs-vsctl", "list-ports", "br-int"])
    assert site.teal("status").count("READY") == 2
    assert site.teal("sync", "tenants/acme")
