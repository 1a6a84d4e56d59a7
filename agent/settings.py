"""Settings of the agent: a YAML file, over it TEALNET_AGENT_<KEY> in the environment, over that flags.

Every key is a field of `Settings`; docs/operations.md prints them. Lists are comma-separated in the environment and
in flags. An unknown key or a value that can't be is an error: a typing mistake must not silently mean a default.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import yaml

PREFIX = "TEALNET_AGENT_"


class SettingsError(Exception):
    """What is wrong with which key."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings with their defaults."""

    host: str = ""  # name of this host, for logs; its identity is the certificate's
    servers: tuple[str, ...] = ()  # host:port of controllers, in no order
    server_name: str = ""  # to check the controllers' certificate against; default: the address in `servers`
    ca: Path = Path("/etc/tealnet/ca.crt")
    cert: Path = Path("/etc/tealnet/host.crt")
    key: Path = Path("/etc/tealnet/host.key")
    crl: str = ""  # PEM file with the revocation lists of that CA; read again when it changes
    vtep: str = ""  # address of this host's end of tunnels; default: the one packets to the controllers come from
    uplink: str = ""  # the underlay NIC; for documentation and checks, the agent never changes it
    underlay_bridge: str = "br-underlay"  # netdev: the OVS bridge that carries the VTEP
    state_dir: Path = Path("/var/lib/tealnet")
    run_dir: Path = Path("/run/tealnet")
    ovs_run_dir: Path = Path("/run/openvswitch")
    ovsdb: str = "unix:/run/openvswitch/db.sock"
    datapath: str = "auto"  # netdev, system or auto: system where the kernel module is there
    bridge: str = "br-int"
    tunnel: str = "vxlan0"
    tunnel_ofport: int = 1
    tunnel_port: int = 4789
    ct_zone_limit: int = (
        20_000  # connections of one port that are remembered; more pass, but have no color of their own
    )
    spares: int = 4  # namespaces that are kept ready and plugged for ports to come; 0: none
    allow_netns: tuple[str, ...] = ()  # globs of namespace paths that ports may name, e.g. /run/netns/cni-*
    allow_device: tuple[str, ...] = ()  # globs of devices that ports may take, e.g. tap*
    log_level: str = "info"
    log_format: str = "json"  # json or console
    socket: str = ""  # unix socket of status and metrics; default: <run_dir>/agent.sock

    @property
    def socket_path(self) -> Path:
        """Where status and metrics are served."""
        return Path(self.socket) if self.socket else self.run_dir / "agent.sock"


_KEYS = {field.name: field for field in fields(Settings)}
_LEAST = {"spares": 0}
_MOST = {"ct_zone_limit": 3_000_000, "spares": 64}  # what Open vSwitch's table holds in all; what fits beside others
_CHOICES = {
    "datapath": ("auto", "netdev", "system"),
    "log_level": ("debug", "info", "warning", "error"),
    "log_format": ("json", "console"),
}


def load(file: Path | None, *, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Settings from all sources; `flags` that are None were not given. Raises SettingsError."""
    values: dict[str, Any] = {}
    if file is not None:
        values |= _checked(_read(file), source=str(file))
    env = {key[len(PREFIX) :].lower(): value for key, value in environ.items() if key.startswith(PREFIX)}
    values |= _checked(env, source="environment")
    values |= _checked({key: value for key, value in flags.items() if value is not None}, source="flags")
    return Settings(**values)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(file.read_text())
    except OSError as error:
        raise SettingsError(f"{file}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{file}: not YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file}: a mapping of keys to values is expected")
    return content


def _checked(values: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    unknown = sorted(str(key) for key in values.keys() - _KEYS.keys())
    if unknown:
        raise SettingsError(f"{source}: unknown: {', '.join(unknown)}; known are {', '.join(sorted(_KEYS))}")
    out = {}
    for key, value in values.items():
        try:
            out[key] = _parsed(key, value)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"{source}: {key}: {error}") from error
    return out


def _parsed(key: str, value: Any) -> Any:
    default = _KEYS[key].default
    if isinstance(default, tuple):
        items = value.split(",") if isinstance(value, str) else value
        return tuple(str(item).strip() for item in items if str(item).strip())
    if isinstance(default, int):
        number = int(value)
        least, most = _LEAST.get(key, 1), _MOST.get(key, 65535)
        if not least <= number <= most:
            raise ValueError(f"not within {least}…{most}")
        return number
    if value is None or isinstance(value, (list, dict)):
        raise ValueError("a text is expected")
    if isinstance(default, Path):
        return Path(str(value))
    if key in _CHOICES and value not in _CHOICES[key]:
        raise ValueError(f"one of {', '.join(_CHOICES[key])} is expected")
    if key == "vtep" and value:
        return str(ip_address(str(value)))
    return str(value)
