"""The `teal` command: its groups, and the one place where failures become text and exit codes.

Exit codes: 0 done, 1 failed, 2 usage, 3 some hosts disconnected or lost, 4 not in time, 5 failures on hosts,
130 interrupted. `teal exec` and `teal lab exec` end with the code of their command.
"""

from __future__ import annotations

import errno
import os
import sys

# Quiet libraries: what a person must know is said by the command itself.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import click

from tealnet.cli import (
    admin,
    apply,
    audit,
    color,
    contexts,
    create,
    create_policy,
    demo,
    describe,
    edit,
    execute,
    hosts,
    objects,
    observe,
    plan,
    policy,
    rollout,
    status,
)
from tealnet.cli.group import Top
from tealnet.cli.lab import lab
from tealnet.cli.options import Seconds
from tealnet.cli.pki import pki
from tealnet.cli.session import Failure, Session
from tealnet.cli.targets import complete_contexts


@click.group(cls=Top, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--context", default="", metavar="NAME", shell_complete=complete_contexts, help="Not the current context."
)
@click.option(
    "--request-timeout", type=Seconds(), default=30.0, metavar="TIME", help="How long one call may take: 5s, 1m. [30s]"
)
@click.pass_context
def teal(ctx: click.Context, *, context: str, request_timeout: float) -> None:
    """Tealnet: tenant networks, and workloads on many hosts that reach each other over them.

    \b
      teal lab up --hosts 3              three hosts on this machine, and a controller
      teal apply -f examples/ --wait     two tenants with networks and ports
      teal get ports
      teal exec acme/web-1 -- ping -c1 10.0.0.20
      teal status

    Objects are named KIND NAME: `port acme/web-1`, or `port web-1 -t acme`; kinds are tenant, network, router, group,
    port, split, rollout, tier and host. Exit codes: 0 done, 1 failed, 2 usage, 3 hosts disconnected or lost, 4 not in
    time, 5 failures on hosts.
    """
    ctx.obj = Session(context=context, timeout=request_timeout)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    \b
      eval "$(teal completion bash)"                     for this shell
      teal completion bash > /etc/bash_completion.d/teal for all
      teal completion fish > ~/.config/fish/completions/teal.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(teal, {}, "teal", "_TEAL_COMPLETE").source())


for command in (create_policy.create_group, create_policy.create_tier):
    create.create.add_command(command)
teal.add_section("Objects", (apply.apply, objects.get, describe.describe, create.create, edit.edit, create.move,
                             objects.delete, plan.diff))  # fmt: skip
teal.add_section("Moving traffic", (color.color, rollout.rollout))
teal.add_section("What is going on", (status.status, observe.sync, observe.watch, observe.events, audit.audit,
                                      policy.policy, hosts.hosts))  # fmt: skip
teal.add_section("Workloads and hosts", (execute.execute, hosts.host))
teal.add_section("Setting up", (lab, demo.demo, contexts.context, pki, admin.admin, completion, observe.version))


def main() -> None:
    """Entry point. Never a traceback (but with TEALNET_DEBUG=1); interrupts and broken pipes end quietly."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: what is said goes nowhere
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    sys.exit(run(sys.argv[1:]))


def run(argv: list[str]) -> int:
    """The command with these arguments; returns its exit code."""
    try:
        _check_text(argv)
        code = teal.main(argv, prog_name="teal", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except click.ClickException as failure:
        failure.show()
        return failure.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("\ninterrupted", err=True)
        return 130
    except BrokenPipeError:
        _say_no_more()
        return 1
    except OSError as error:
        if error.filename is not None or error.errno not in (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG):
            return _unforeseen(error)
        _say_no_more()
        Failure(f"the output could not be written: {error.strerror}").show()
        return 1
    except Exception as error:  # what nobody foresaw is still not a traceback for whoever only uses this
        return _unforeseen(error)


def _unforeseen(error: Exception) -> int:
    if os.environ.get("TEALNET_DEBUG"):
        raise error
    what = f"{type(error).__name__}: {error}"
    Failure(f"this is a bug of teal: {what}\n  TEALNET_DEBUG=1 shows where; please report it with that").show()
    return 1


def _say_no_more() -> None:
    """What Python flushes at its end goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check_text(argv: list[str]) -> None:
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise Failure(
                f"an argument is not UTF-8 text: {word.encode(errors='backslashreplace').decode()}", code=2
            ) from None


if __name__ == "__main__":
    main()
