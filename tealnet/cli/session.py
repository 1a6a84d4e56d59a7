"""What every command shares: the context (which controller, who am I), the client, and names as a person types them.

Contexts stand in a YAML file, by default ~/.config/tealnet/config.yaml (TEALNET_CONFIG, XDG_CONFIG_HOME):

    current: lab
    contexts:
      lab: {server: unix:/…/api.sock, ca: …, cert: …, key: …, tenant: acme, lab: demo}
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import yaml

from tealnet.kinds import Kind


class Failure(click.ClickException):
    """A clear end: what, and what to do. Never a traceback."""

    def __init__(self, message: str, *, code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = code  # type: ignore[misc]  # click's is of the class; ours differ

    def show(self, file: Any = None) -> None:
        """One `error:` line, details below it."""
        click.echo(click.style("error: ", fg="red", bold=True) + self.message, err=True)


def config_path() -> Path:
    """The file of contexts."""
    if named := os.environ.get("TEALNET_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(os.path.expanduser("~")) / ".config") / "tealnet" / "config.yaml"


def load_config() -> dict[str, Any]:
    """The file's content; an absent file is an empty one. Raises Failure when it is not what it should be."""
    path = config_path()
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        content = {}
    except OSError as error:
        raise Failure(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        text = " ".join(str(error).split())
        raise Failure(f"{path} is not YAML: {text}\n  Repair it, or move it away and add your contexts again") from None
    if content is None:
        content = {}
    wrong = not isinstance(content, dict) or not isinstance(content.get("contexts") or {}, dict)
    if wrong or not all(isinstance(found, dict) for found in (content.get("contexts") or {}).values()):
        raise Failure(
            f"{path} is not a file of contexts: expected `current: NAME` and `contexts: {{NAME: {{server: …}}}}`"
        )
    content["contexts"] = {str(name): found for name, found in (content.get("contexts") or {}).items()}
    return dict(content)


def save_config(content: dict[str, Any]) -> None:
    """Write the file, readable by its owner alone. Raises Failure."""
    path = config_path()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(mode=0o600)
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
        temporary.replace(path)
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


def lab_command(context: dict[str, Any], words: str) -> str:
    """`teal lab WORDS` for the lab of a context, as it is to be typed; "" if it has none."""
    lab = context.get("lab")
    if not lab:
        return ""
    verb, _, rest = words.partition(" ")
    return " ".join(filter(None, ["teal lab", verb, "" if lab == "default" else f"--name {lab}", rest]))


@dataclass
class Session:
    """One invocation: `context` by name ("" = current), `tenant` as given with -t ("" = the context's)."""

    context: str = ""
    tenant: str = ""
    timeout: float = 30.0
    _client: Any = None

    def chosen(self, config: dict[str, Any]) -> str:
        """The context's name: --context, TEALNET_CONTEXT, else the current one; "" if there is none."""
        return str(self.context or os.environ.get("TEALNET_CONTEXT") or config.get("current") or "")

    def settings(self) -> dict[str, Any]:
        """The chosen context's settings. Raises Failure with the way out."""
        config = load_config()
        name = self.chosen(config)
        known = ", ".join(sorted(config["contexts"])) or "none"
        add = "`teal context add NAME --server HOST:PORT --ca FILE --cert FILE --key FILE`"
        if not name:
            choose = f"Choose one with `teal context use NAME` (there are: {known})" if config["contexts"] else (
                f"Start a lab with `teal lab up`, or add one with\n  {add}"
            )  # fmt: skip
            raise Failure(f"no context: teal does not know which controller is meant.\n  {choose}")
        found = config["contexts"].get(name)
        if found is None:
            raise Failure(f"no context {name!r}; there are: {known}.\n  Add one with {add}")
        missing = [key for key in ("server", "ca", "cert", "key") if not isinstance(found.get(key), str)]
        if missing:
            raise Failure(f"context {name!r} lacks {', '.join(missing)}; see {config_path()}")
        return {"name": name, **found}

    @property
    def client(self) -> Any:
        """The client, made at first use (gRPC is slow to import)."""
        if self._client is None:
            from tealnet.client import Client, Context

            found = self.settings()
            files = {key: found[key] for key in ("ca", "cert", "key")}
            name = found.get("server_name") or "controller"
            try:
                self._client = Client(Context(server=found["server"], server_name=name, **files), timeout=self.timeout)
            except ValueError as error:
                raise Failure(f"the server of context {found['name']!r}: {error}") from None
            except OSError as error:
                raise Failure(
                    f"cannot read {error.filename} of context {found['name']!r}: {error.strerror}.\n"
                    "  If its lab is gone: `teal lab up`; else add the context again with `teal context add`"
                ) from None
        return self._client

    def own_tenant(self) -> str:
        """The tenant from -t, TEALNET_TENANT or the context, as tenants/acme; "" if none is said."""
        tenant = self.tenant or os.environ.get("TEALNET_TENANT") or self.settings().get("tenant") or ""
        ident = str(tenant).removeprefix("tenants/")
        if "/" in ident:
            raise Failure(f"-t {tenant!r} is not the name of a tenant", code=2)
        return f"tenants/{ident}" if ident else ""

    def parent(self, *, required: bool) -> str:
        """tenants/acme from -t, TEALNET_TENANT or the context; tenants/- (all) unless `required`."""
        if tenant := self.own_tenant():
            return tenant
        if required:
            raise Failure(
                "which tenant? Say TENANT/NAME, give -t TENANT, or set TEALNET_TENANT or the context's `tenant`", code=2
            )
        return "tenants/-"

    def name_of(self, kind: Kind, text: str) -> str:
        """A resource name from what a person types: web, acme/web or tenants/acme/networks/web. Raises Failure."""
        parts = text.split("/")
        if not all(parts):
            raise Failure(f"{text!r} is not a name", code=2)
        match parts:
            case [ident] if not kind.owned:
                return f"{kind.plural}/{ident}"
            case [plural, _] if not kind.owned and plural == kind.plural:
                return text
            case [ident] if kind.owned:
                return kind.full_name(self.parent(required=True), ident)
            case [tenant, ident] if kind.owned:
                return kind.full_name(f"tenants/{tenant}", ident)
            case ["tenants", _, plural, _] if kind.written and kind.owned and plural == kind.plural:
                return text
            case ["tenants", tenant, "networks", ident, _] if text == kind.full_name(f"tenants/{tenant}", ident):
                return text
        forms = f"NAME, TENANT/NAME or {kind.full_name('tenants/TENANT', 'NAME')}" if kind.owned else "NAME"
        raise Failure(f"{text!r} is not the name of a {kind.words}; write {forms}", code=2)


pass_session = click.make_pass_decorator(Session, ensure=True)
