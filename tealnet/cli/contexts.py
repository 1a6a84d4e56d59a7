"""context list|use|add|remove: which controller, and who I am there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tealnet import kinds
from tealnet.cli import output
from tealnet.cli.group import Suggesting
from tealnet.cli.session import Failure, load_config, save_config
from tealnet.cli.targets import complete_contexts, complete_names

_file = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Suggesting)
def context() -> None:
    """Controllers and certificates by name.

    \b
      teal context add prod --server c1:7443,c2:7443 --ca ca.crt --cert admin.crt --key admin.key
      teal context use prod
      teal --context lab status            once, with another
    """


@context.command("list")
def list_() -> None:
    """All contexts, who they are, and until when; * = current.

    \b
      teal context list
    """
    config = load_config()
    if not config["contexts"]:
        click.echo("no contexts; `teal lab up` and `teal context add` make them", err=True)
        return
    current = config.get("current")
    rows = []
    for name, found in config["contexts"].items():
        who, until = _identity(found)
        mark = "*" if name == current else ""
        rows.append([mark, name, str(found.get("server", "")), who, until, str(found.get("tenant", ""))])
    output.table(["", "NAME", "SERVER", "IDENTITY", "VALID UNTIL", "TENANT"], rows)


def _identity(found: dict[str, Any]) -> tuple[str, str]:
    """Role and end of a context's certificate."""
    from tealnet.core.pki import PkiError, load_certificate, uri_names

    path = str(found.get("cert", ""))
    try:
        certificate = load_certificate(Path(path).read_bytes(), path)
        who = ", ".join(uri.removeprefix("spiffe://").partition("/")[2] for uri in uri_names(certificate))
    except OSError as error:
        return f"({path}: {error.strerror})", ""
    except PkiError:
        return f"({path} is no certificate)", ""
    return who, f"{certificate.not_valid_after_utc:%F}"


@context.command("use")
@click.argument("name", shell_complete=complete_contexts)
def use(name: str) -> None:
    """Make a context the current one.

    \b
      teal context use prod
    """
    config = load_config()
    if name not in config["contexts"]:
        raise Failure(f"no context {name!r}; there are: {', '.join(sorted(config['contexts'])) or 'none'}")
    config["current"] = name
    save_config(config)
    click.echo(f"current context: {name}")


@context.command("add")
@click.argument("name")
@click.option("--server", required=True, help="HOST:PORT of a controller or unix:PATH; replicas separated by commas.")
@click.option("--server-name", default="controller", show_default=True, help="The name that its certificate has.")
@click.option("--ca", required=True, type=_file, help="PEM file of the CA that signed the controller's certificate.")
@click.option("--cert", required=True, type=_file, help="PEM file of your certificate; it says who you are.")
@click.option("--key", required=True, type=_file, help="PEM file of its key.")
@click.option("--tenant", default="", help="Tenant of short names.", shell_complete=complete_names(kinds.TENANT))
@click.option("--lab", default="", help="The lab it belongs to, for `teal exec`.")
def add(name: str, *, server: str, server_name: str, ca: Path, cert: Path, key: Path, tenant: str, lab: str) -> None:
    """Add or replace a context and use it.

    \b
      teal pki issue ca tenant/acme/admin --out acme
      teal context add acme --server c1:7443 --tenant acme --ca ca/ca.crt \\
        --cert acme/tenant-acme-admin.crt --key acme/tenant-acme-admin.key
    """
    settings = {
        "server": server,
        "server_name": server_name,
        "ca": str(ca.resolve()),
        "cert": str(cert.resolve()),
        "key": str(key.resolve()),
        **{word: value for word, value in (("tenant", tenant), ("lab", lab)) if value},
    }
    put_context(name, settings)
    click.echo(f"context {name} added; it is the current one")


@context.command("remove")
@click.argument("name", shell_complete=complete_contexts)
def remove(name: str) -> None:
    """Forget a context; its certificates stay where they are.

    \b
      teal context remove prod
    """
    if name not in load_config()["contexts"]:
        raise Failure(f"no context {name!r}")
    drop_context(name)
    click.echo(f"context {name} removed")


def put_context(name: str, settings: dict[str, str]) -> None:
    """Add or replace a context and make it the current one."""
    config = load_config()
    config["contexts"][name] = settings
    config["current"] = name
    save_config(config)


def drop_context(name: str) -> None:
    """Forget a context; the absent is forgotten already.

    If it was the current one, none is: the next command must not go to a controller that nobody has chosen.
    """
    config = load_config()
    if config["contexts"].pop(name, None) is not None:
        if config.get("current") == name:
            config["current"] = ""
        save_config(config)
