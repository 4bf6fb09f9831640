"""The command `vrha`: finds the command, runs it, and turns failures into one line and a code."""

from __future__ import annotations

import importlib
import sys
import traceback
from typing import cast

import click

from vrha import __version__
from vrha.cli.settings import DEFAULT_SOCKET, FORMATS, Settings
from vrha.errors import SpecError, VrhaError

COMMANDS = {
    "agent": ("vrha.cli.agent:agent", "Run the agent of this node."),
    "apply": ("vrha.cli.apply:apply", "Make a file the desired state."),
    "cleanup": ("vrha.cli.cleanup:cleanup", "What a dead agent left on this node: plan, run."),
    "diff": ("vrha.cli.apply:diff", "Show what an apply would change."),
    "doctor": ("vrha.cli.doctor:doctor", "Check whether this machine can run vrha."),
    "events": ("vrha.cli.events:events", "Show what happened and why."),
    "lab": ("vrha.cli.lab:lab", "A whole zone in namespaces on this machine."),
    "network": ("vrha.cli.network:network", "Networks: list, show, restart."),
    "node": ("vrha.cli.node:node", "Nodes and what they host: list, why, drain, undrain."),
    "orchestrator": ("vrha.cli.orchestrator:orchestrator", "Run the orchestrator."),
    "pause": ("vrha.cli.pause:pause", "Stop automatic moves of all, a zone, node or router."),
    "resume": ("vrha.cli.pause:resume", "Let what was paused be moved automatically again."),
    "rollout": ("vrha.cli.rollout:rollout", "Operations over many routers: watch, stop, resume."),
    "router": ("vrha.cli.router:router", "Routers: list, show, why, move."),
    "run": ("vrha.cli.run:run", "Runs: list, show, watch, diagram."),
    "status": ("vrha.cli.status:status", "Everything at a glance: nodes, brake, pauses, runs."),
    "watcher": ("vrha.cli.watcher:watcher", "The watcher of this node: run, status, keys."),
}
"""Command to where it lives and its line in the help: `--help` imports none of them."""

EXIT_INTERRUPTED = 130


class LazyGroup(click.Group):
    """A group that imports a command only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return cast(click.Command, getattr(importlib.import_module(module), attribute))

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vrha")
@click.option(
    "--socket",
    envvar="VRHA_SOCKET",
    default=DEFAULT_SOCKET,
    show_default=True,
    show_envvar=True,
    help="Unix socket of the orchestrator.",
)
@click.option(
    "-o",
    "--output",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="Form of the data on standard output.",
)
@click.option("--debug", is_flag=True, help="Show tracebacks of errors.")
@click.pass_context
def cli(ctx: click.Context, socket: str, output: str, debug: bool) -> None:
    """Keep virtual routers serving while they are restarted, moved, upgraded or lost.

    Data goes to standard output, progress and errors to standard error. Exit codes: 0 done,
    1 failed, 2 wrong request, 3 not finished in time, 4 refused, 5 orchestrator not reachable.
    """
    settings = ctx.ensure_object(Settings)
    settings.socket, settings.output, settings.debug = socket, output, debug


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command in `arguments`; its exit code. Prints each error once, never raises one."""
    settings = Settings()
    try:
        result = cli.main(arguments, prog_name="vrha", standalone_mode=False, obj=settings)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return EXIT_INTERRUPTED
    except click.ClickException as error:
        _explain_usage(error)
        return error.exit_code
    except VrhaError as error:
        _explain(error, settings.debug)
        return error.exit_code
    except Exception as error:
        _explain(
            VrhaError(
                "internal",
                f"unexpected {type(error).__name__}: {error}",
                "This is a bug of vrha; --debug shows where.",
            ),
            settings.debug,
        )
        return VrhaError.exit_code


def _explain_usage(error: click.ClickException) -> None:
    """Print how the command is used, where that is known, and what was wrong."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    if context is not None:
        click.echo(context.get_usage(), err=True)
    click.echo(f"error: {error.format_message()} [usage]", err=True)
    if context is not None:
        click.echo(f"`{context.command_path} --help` explains it.", err=True)


def _explain(error: VrhaError, debug: bool) -> None:
    """Print `error` once on standard error, after the traceback where --debug asks for it."""
    if debug:
        traceback.print_exc()
    if isinstance(error, SpecError):
        count = len(error.problems)
        click.echo(f"error: {count} problem{'' if count == 1 else 's'} [{error.code}]", err=True)
        for problem in error.problems:
            click.echo(problem, err=True)
    else:
        click.echo(f"error: {error.message} [{error.code}]", err=True)
    if error.hint:
        click.echo(error.hint, err=True)


if __name__ == "__main__":
    main()
