"""The `teal` command on a real lab: the README's tour as it stands there, and what a person gets who makes mistakes."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tealnet.cli.main import run
from tealnet.lab.wait import wait_for
from tests.lab.mistakes import MISTAKES

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120)]

SOURCES = Path(__file__).resolve().parents[2]
SOON = 15.0


@dataclass(frozen=True)
class Place:
    """Where a person types: own contexts and labs, and `teal` in the path."""

    directory: Path

    @property
    def env(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "TEALNET_CONFIG": str(self.directory / "config.yaml"),
            "TEALNET_LAB_DIR": str(self.directory / "labs"),
        }

    def sh(self, command: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", command], cwd=SOURCES, env=self.env, capture_output=True, text=True, timeout=60,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert "Traceback" not in done.stderr and "bug of teal" not in done.stderr, done.stderr
        return done


def place() -> Iterator[Place]:
    # Short: a unix socket's path has 107 bytes.
    directory = Path(tempfile.mkdtemp(prefix="tc", dir="/tmp"))
    here = Place(directory)
    (directory / "bin").mkdir()
    script = directory / "bin" / "teal"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={SOURCES} exec {sys.executable} -m tealnet.cli.main "$@"\n')
    script.chmod(0o755)
    try:
        yield here
    finally:
        down = here.sh("teal lab down --all")
        assert down.returncode == 0, down.stderr
        assert not (directory / "labs").exists()
        shutil.rmtree(directory)


@pytest.fixture
def fresh() -> Iterator[Place]:
    yield from place()


@pytest.fixture(scope="module")
def desk() -> Iterator[Place]:
    """A lab with what the examples make."""
    for here in place():
        done = here.sh("teal lab up --hosts 3 && teal apply -f examples/ --wait")
        assert done.returncode == 0, done.stderr
        yield here


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        return self.out + self.err


Teal = Callable[..., Result]


@pytest.fixture
def teal(desk: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Teal:
    """`teal WORDS` in this process, which is what makes many of them quick."""
    for name in ("TEALNET_CONFIG", "TEALNET_LAB_DIR"):
        monkeypatch.setenv(name, desk.env[name])
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115

    def call(*words: object) -> Result:
        capsys.readouterr()
        code = run([str(word) for word in words])
        done = Result(code, *capsys.readouterr())
        assert "Traceback" not in done.err and "bug of teal" not in done.err, done.err
        return done

    return call


# ---- the README


def tour() -> list[str]:
    """The commands of the README's tour: its indented lines, those with `$ ` where there is output between them."""
    section = (SOURCES / "README.md").read_text().split("## Five minutes")[1].split("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    if any(line.startswith("$ ") for line in lines):
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    commands = [re.sub(r"\s+# .*", "", line) for line in lines]
    return [command for command in commands if not command.startswith("export ")]


def test_the_tour_of_the_readme(fresh: Place) -> None:
    commands = tour()
    assert len(commands) >= 8 and commands[0].startswith("teal lab up")
    for command in commands:
        done = fresh.sh(command)
        assert done.returncode == 0, (command, done.stdout, done.stderr)


# ---- whoever looks


def test_what_there_is(teal: Teal, desk: Place) -> None:
    ports = teal("get", "ports")
    assert ports.out.count("ACTIVE") == 9 and "10.0.0.20" in ports.out
    text = teal("describe", "port", "acme/web-1").out
    assert "ACTIVE" in text and "acme/web" in text and "Created" in text
    assert "carries" in teal("describe", "host", "h1").out
    status = teal("status").out
    assert "9 ports: 9 ACTIVE" in status and status.count("READY") == 3 and "3.4" in status
    assert len(status.splitlines()) <= 24
    assert "port acme/web-1" in teal("events").out
    assert [json.loads(line)["type"] for line in teal("watch", "-o", "json", "--count", "1").out.splitlines()] == [
        "ADDED"
    ]
    assert "controller  " in teal("version").out


def test_commands_in_workloads(desk: Place) -> None:
    assert "1 received" in desk.sh("teal exec acme/web-1 -- ping -c1 -W2 10.0.0.20").stdout
    assert "10.0.0.20/24" in desk.sh("teal exec -t acme web-2 ip -brief addr show eth0").stdout
    assert desk.sh("teal exec acme/web-1 -- sh -c 'exit 7'").returncode == 7
    assert desk.sh("teal exec acme/web-1 -- nothing-like-this").returncode == 127
    assert desk.sh("teal get ports -o name | xargs teal get -o name | wc -l").stdout.strip() == "9"


def test_what_get_prints_changes_nothing(desk: Place) -> None:
    done = desk.sh("teal get all -o yaml | teal apply -f -")
    there = json.loads(desk.sh("teal get all -o json").stdout)
    written = [one for one in there if one["kind"] != "TrafficSplit"]  # that one is no document
    assert done.returncode == 0 and done.stdout.count(" unchanged\n") == len(written) > 20, done


# ---- whoever changes something


def test_create_move_delete(teal: Teal) -> None:
    done = teal("create", "port", "acme/new", "--network", "web", "--host", "h1", "--address", "10.0.0.99", "--wait")
    assert done.code == 0 and "active on h1: 10.0.0.99" in done.out and "3 of 3 hosts know it" in done.out, done
    done = teal("move", "acme/new", "--to", "h2")
    assert done.code == 0 and "moves from h1 to h2" in done.out and "active on h2: 10.0.0.99" in done.out, done
    done = teal("delete", "port", "acme/new", "--wait")
    assert done.code == 0 and "gone: " in done.out, done
    assert "Deleted" in teal("events", "port", "acme/new").out


def test_edit(teal: Teal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDITOR", "sed -i s/10.0.0.53/10.0.0.54/")
    assert teal("edit", "network", "acme/web").out == "network acme/web changed\n"
    monkeypatch.setenv("EDITOR", "sed -i s/10.0.0.54/me/")
    done = teal("edit", "network", "acme/web")
    assert done.code == 1 and "dns.servers[0]: 'me' is not an IPv4 or IPv6 address" in done.err
    assert teal("apply", "-f", SOURCES / "examples").code == 0


def test_a_set_of_files(teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "site.yaml"
    tenant = "kind: Tenant\nname: site\n---\nkind: Network\ntenant: site\nname: a\ncidrs: [10.1.0.0/24]\n"
    port = "---\nkind: Port\ntenant: site\nname: p\nnetwork: a\nhost: h1\n"
    file.write_text(tenant + port)
    assert teal("diff", "-f", file).code == 1
    done = teal("apply", "-f", file, "--set", "site", "--wait")
    assert done.code == 0 and "1 of 1 host knows it" in done.out, done
    assert teal("diff", "-f", file).code == 0
    file.write_text(tenant.replace("10.1.0.0/24", "10.1.0.0/24, 10.2.0.0/24"))
    done = teal("diff", "-f", file)
    assert done.code == 1 and "+- 10.2.0.0/24" in done.out
    assert "port site/p would be deleted" in teal("apply", "-f", file, "--set", "site", "--prune", "--dry-run").out
    done = teal("apply", "-f", file, "--set", "site", "--prune")
    assert done.code == 1 and "--yes" in done.err, "nobody is there to be asked"
    done = teal("apply", "-f", file, "--set", "site", "--prune", "--yes", "--wait")
    assert done.code == 0 and "port site/p deleted" in done.out
    file.write_text(tenant.replace("10.1.0.0/24", "10.1.0.7/24"))
    assert teal("diff", "-f", file).code == 2
    assert teal("delete", "tenant", "site").code == 1
    assert teal("delete", "tenant", "site", "--cascade", "--yes", "--wait").code == 0


def test_some_documents_fail(teal: Teal, tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "kind: Network\ntenant: acme\nname: bad\ncidrs:\n  - 10.7.0.1/24\n---\n"
        "kind: Port\ntenant: acme\nname: p1\nnetwork: bad\n---\n"
        "kind: Network\ntenant: acme\nname: good\ncidrs: [10.8.0.0/24]\n---\n"
        "kind: Port\ntenant: acme\nname: p2\nnetwork: good\nhost: h9\n"
    )
    for words in (("--dry-run",), ()):
        done = teal("apply", "-f", file, *words)
        assert done.code == 1, done
        assert f"{file}:4: network.cidrs[0]: 10.7.0.1/24 has bits set" in done.err
        assert "skipped: network acme/bad fail" in done.err
        assert f"{file}:21: port.host: hosts/h9 not found" in done.err
        assert "network acme/good" in done.out
    assert teal("delete", "-f", file).code == 0


# ---- hosts that do not answer


def test_an_agent_that_does_not_answer(teal: Teal) -> None:
    assert teal("lab", "stop", "h2", "agent").code == 0
    try:
        done = teal("create", "port", "acme/late", "--network", "web", "--host", "h2", "--wait", "--timeout", "500ms")
        assert done.code == 4 and "h2 is behind" in done.err and "2 of 3 hosts know it" in done.err, done
        wait_for(lambda: teal("sync", "--timeout", "300ms").code == 3, seconds=SOON, what="h2 to be disconnected")
        done = teal("sync", "--timeout", "300ms")
        assert "h2 is disconnected" in done.err and "teal host fence h2" in done.err, done
        assert re.search(r"h2\s+DISCONNECTED", teal("status").out)
        assert "UNKNOWN (HostDisconnected)" in teal("get", "port", "acme/late").out
        done = teal("delete", "port", "acme/late", "--wait", "--timeout", "300ms")
        assert done.code == 3 and "port acme/late deleted" in done.out and "h2 is disconnected" in done.err, done
    finally:
        teal("lab", "cont", "h2", "agent")
    wait_for(lambda: teal("sync").code == 0, seconds=SOON, what="h2 to be back")


def test_a_host_that_burns_down(teal: Teal) -> None:
    assert teal("lab", "add-host", "h4").code == 0
    assert teal("create", "port", "acme/on-h4", "--network", "web", "--host", "h4", "--wait").code == 0
    assert teal("lab", "remove-host", "--force", "h4").code == 0
    wait_for(lambda: teal("sync", "--timeout", "300ms").code == 3, seconds=SOON, what="h4 to be missed")
    assert "h4" in teal("sync", "--timeout", "300ms").err
    assert teal("delete", "host", "h4").code == 1, "a port is there"
    done = teal("host", "fence", "h4")
    assert done.code == 1 and "--yes" in done.err
    assert teal("host", "fence", "h4", "--yes").code == 0
    assert teal("sync").code == 0
    assert "UNKNOWN (HostFenced)" in teal("get", "port", "acme/on-h4").out
    assert teal("delete", "port", "acme/on-h4", "--wait").code == 0
    assert teal("delete", "host", "h4").code == 0


# ---- tenants


@pytest.fixture
def as_acme(desk: Place, teal: Teal) -> Iterator[Teal]:
    """With a certificate of tenant/acme/admin that `teal pki` issued."""
    pki, leaf = desk.directory / "labs" / "default" / "pki", desk.directory / "acme"
    if not leaf.exists():
        assert teal("pki", "issue", pki, "tenant/acme/admin", "--out", leaf).code == 0
    server = f"unix:{pki.parent / 'api.sock'}"
    done = teal("context", "add", "acme", "--server", server, "--tenant", "acme", "--ca", pki / "ca.crt",
                "--cert", leaf / "tenant-acme-admin.crt", "--key", leaf / "tenant-acme-admin.key")  # fmt: skip
    assert done.code == 0
    yield teal
    teal("context", "use", "lab")


def test_a_tenant_sees_its_own_objects_only(as_acme: Teal) -> None:
    teal = as_acme
    names = [o["name"] for o in json.loads(teal("get", "all", "-o", "json").out)]
    assert names and all(name.startswith("tenants/acme/") for name in names)
    watched = [json.loads(line) for line in teal("watch", "-o", "json", "--count", len(names)).out.splitlines()]
    seen = {one["object"]["name"] for one in watched if "object" in one}
    assert all(name.startswith(("tenants/acme", "hosts/")) for name in seen)
    assert "globex" not in teal("events").text
    assert "1 tenant, 3 networks, 1 router, 7 ports: 7 ACTIVE" in teal("status").out
    assert "192.0.2" not in teal("get", "hosts", "-o", "json").out, "tunnel addresses are the admin's"
    assert teal("sync").code == 0


@pytest.mark.parametrize(
    "words",
    [
        "get port globex/{}",
        "describe port globex/{}",
        "delete port globex/{}",
        "move globex/{} --to h1",
        "exec globex/{} -- true",
        "sync network globex/{}",
        "get network globex/{} -o json",
        "delete network globex/{} --cascade --yes",
        "create port acme/x --network globex/{}",
        "events port globex/{}",
    ],
)
def test_what_is_not_yours_reads_as_absent(as_acme: Teal, words: str) -> None:
    """The same words, but for the name, and the same code for what is there and what is not."""
    there = "web" if "network" in words else "web-1"
    told = [as_acme(*words.format(name).split()) for name in (there, "none")]
    assert told[0].code == told[1].code == 1
    assert told[0].text.replace(there, "none") == told[1].text


def test_a_tenant_may_not(as_acme: Teal) -> None:
    for words in ("create tenant x", "create host x", "delete tenant acme", "host fence h1 --yes", "host add x",
                  "host accept --all", "host drain h1"):  # fmt: skip
        done = as_acme(*words.split())
        assert done.code == 1 and "may not" in done.err and "context 'acme' uses" in done.err, done


# ---- mistakes: each message names the field, and what to do


@pytest.mark.parametrize(("words", "text"), MISTAKES)
def test_a_mistake_is_explained(teal: Teal, words: str, text: str) -> None:
    before = teal("get", "all", "-o", "name").out
    done = teal("create", *words.split())
    assert done.code == 1 and text in done.err, done
    assert teal("get", "all", "-o", "name").out == before, "nothing is half written"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("delete network acme/web", "is in use by tenants/acme/ports/"),
        ("delete router acme/main", "is in use by tenants/acme/networks/"),
        ("delete host h1", "is in use by tenants/"),
        ("delete port acme/none", "tenants/acme/ports/none not found"),
        ("move acme/web-1 --to h9", "port.host: hosts/h9 not found"),
        ("get ports -l =x", "filter: '=x' is not a condition like a=b"),
        ("sync network acme/none", "tenants/acme/networks/none not found"),
        ("host add H", "host_id: 'H' is not a name"),
        ("host fence h9 --yes", "hosts/h9 not found"),
        ("host accept h9", "hosts/h9 not found"),
        ("watch --resume 999999999", "is it the same cluster?"),
    ],
)
def test_a_wrong_command_is_explained(teal: Teal, words: str, text: str) -> None:
    done = teal(*words.split())
    assert done.code == 1 and text in done.err, done


def test_a_controller_that_is_gone(teal: Teal) -> None:
    assert teal("lab", "kill", "controller", "controller").code == 0
    try:
        done = teal("status")
        assert done.code == 1 and "nobody listens at" in done.err and "teal lab status" in done.err, done
    finally:
        assert teal("lab", "start", "controller", "controller").code == 0
    wait_for(lambda: teal("sync").code == 0, seconds=SOON, what="the controller to be back")
