"""Settings: file < environment < flags, and no mistake passes silently."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from agent.settings import Settings, SettingsError, load

EXAMPLE = Path(__file__).parents[2] / "deploy" / "agent.yaml"


def settings(tmp_path: Path, text: str = "", environ: dict[str, str] | None = None, **flags: Any) -> Settings:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return load(file, environ=environ or {}, flags=flags)


def test_flags_go_before_environment_before_file(tmp_path: Path) -> None:
    text = "host: file\nbridge: file\nlog_level: debug\nservers: [a:1, b:2]\n"
    environ = {"TEALNET_AGENT_HOST": "env", "TEALNET_AGENT_BRIDGE": "env", "OTHER": "x"}
    found = settings(tmp_path, text, environ, host="flag", bridge=None)
    assert (found.host, found.bridge, found.log_level) == ("flag", "env", "debug")
    assert found.servers == ("a:1", "b:2")


def test_values_take_the_type_of_their_default(tmp_path: Path) -> None:
    environ = {"TEALNET_AGENT_ALLOW_NETNS": "/run/netns/cni-*, /run/netns/x", "TEALNET_AGENT_TUNNEL_PORT": "4790"}
    found = settings(tmp_path, "state_dir: /srv/tealnet\nvtep: 2001:DB8::1\n", environ)
    assert found.allow_netns == ("/run/netns/cni-*", "/run/netns/x")
    assert found.tunnel_port == 4790
    assert found.state_dir == Path("/srv/tealnet")
    assert found.vtep == "2001:db8::1"


def test_the_status_socket_is_in_the_run_directory_unless_said_otherwise(tmp_path: Path) -> None:
    assert settings(tmp_path, "run_dir: /run/x").socket_path == Path("/run/x/agent.sock")
    assert settings(tmp_path, "socket: /tmp/y.sock").socket_path == Path("/tmp/y.sock")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hots: a", "unknown: hots"),
        ("[]", "mapping"),
        ("a: [", "not YAML"),
        ("datapath: kernel", "datapath: one of auto, netdev, system"),
        ("vtep: nonsense", "vtep"),
        ("tunnel_port: 0", "tunnel_port"),
        ("tunnel_port: many", "tunnel_port"),
        ("host: [a]", "host: a text"),
        ("servers: 5", "servers"),
        ("ca: null", "ca"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        settings(tmp_path, text)


def test_a_mistake_in_the_environment_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="environment: unknown: nonsense"):
        settings(tmp_path, "", {"TEALNET_AGENT_NONSENSE": "1"})


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load(tmp_path / "none.yaml", environ={}, flags={})


def test_the_example_has_every_setting_with_its_default() -> None:
    text = EXAMPLE.read_text()
    shown = yaml.safe_load("\n".join(line.removeprefix("#") for line in text.splitlines() if not line.startswith("# ")))
    defaults: dict[str, Any] = {field.name: field.default for field in fields(Settings)}
    assert shown.keys() == defaults.keys()
    for key, value in shown.items():
        if key != "servers":
            assert (tuple(value) if isinstance(value, list) else type(defaults[key])(value)) == defaults[key], key
