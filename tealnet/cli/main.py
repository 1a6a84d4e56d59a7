"""The `teal` command: its groups, and the one place where failures become text and exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 some hosts disconnected, 4 timeout, 5 failures on hosts.
"""

from __future__ import annotations

import os
import sys

# Quiet libraries: what a person must know is said by the command itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click

from tealnet.cli import apply, contexts, create, execute, hosts, objects, observe
from tealnet.cli.lab import lab
from tealnet.cli.pki import pki
from tealnet.cli.session import Failure, Session


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--context", default="", help="A context other than the current one.")
@click.option("--request-timeout", default=30.0, help="Seconds that a call may take.")
@click.pass_context
def teal(ctx: click.Context, *, context: str, request_timeout: float) -> None:
    """Tealnet: tenant networks, workloads on many hosts, blue-green segments.

    Begin with `teal lab up`, then `teal apply -f examples/`, `teal status`, `teal get ports`.
    """
    ctx.obj = Session(context=context, timeout=request_timeout)


@teal.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script: `eval "$(teal completion bash)"`."""
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(teal, {}, "teal", "_TEAL_COMPLETE").source())


@teal.command(context_settings={"ignore_unknown_options": True})
@click.option("--keep", is_flag=True, help="Leave the lab up for playing.")
def demo(keep: bool) -> None:
    """Tell the story on a lab of 3 hosts with real traffic."""
    from tealnet.lab.demo import run

    sys.exit(run(keep="lab" if keep else ""))


for command in (
    apply.apply,
    apply.diff,
    objects.get,
    objects.describe,
    objects.delete,
    create.create,
    create.move,
    observe.watch,
    observe.sync,
    observe.status,
    observe.events,
    observe.version,
    execute.execute,
    hosts.hosts,
    hosts.host,
    contexts.context,
    lab,
    pki,
):
    teal.add_command(command)


def main() -> None:
    """Entry point. Interrupts and broken pipes end quietly."""
    try:
        teal(standalone_mode=False)
    except Failure as failure:
        failure.show()
        sys.exit(failure.code)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as usage:
        usage.show()
        sys.exit(usage.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("aborted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)


if __name__ == "__main__":
    main()
