# SPDX-License-Identifier: Apache-2.0
"""`wicket`: which commands there are, and how a command ends.

A command is one file here, `COMMAND.py`, with a function or a cyclopts `App` of the command's name; it is imported
only when it runs, so that `wicket --help` and shell completion stay fast. It returns its exit code or None, and raises
`WicketError` for what the user should read instead of a traceback.
"""

from __future__ import annotations

import gc
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING, NoReturn

from wicketgate import __version__
from wicketgate.cli.help_text import reflowed
from wicketgate.errors import InputError, StateError, WicketError

if TYPE_CHECKING:
    from cyclopts import App

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE


@dataclass(frozen=True, slots=True)
class Command:
    """One line of the table below."""

    name: str
    help: str


COMMANDS = (
    Command("up", "Run a WireGuard gateway from a wg-quick file."),
    Command("sidecar", "Stand beside any WireGuard container: pin its replies, tell the truth about it."),
    Command("probe", "Make a WireGuard handshake, and a ping through the tunnel, from outside."),
    Command("doctor", "Say which rule breaks a flow here, and a fix that was tried before it is shown."),
    Command("trace", "Walk one packet's way, and its answer's, step by step."),
    Command("watch", "Write every change of links, routes, rules and firewall, and what it broke."),
    Command("lab", "The whole story on one machine: client, load balancer, nodes, pods."),
    Command("snapshot", "Print the network state of this machine or pod as JSON."),
)

# Shown as it stands here (markdown would cost 0.2 s at each --help), so lines end before column 80.
_HELP = """A WireGuard gateway that a load balancer can trust.

Exit codes: 0 good; 1 what was looked at is unhealthy or broken; 2 bad usage
or bad input; 3 the state could not be read or changed (a missing right, tool
or namespace).

For example:

  wicket probe gw.example.com:51820 --public-key KEY --private-key-file FILE
  wicket probe --help
  wicket --install-completion
"""


def build(chosen: str = "") -> App:
    """The command line, nothing of it run yet.

    Args:
        chosen: the command that was named. It shows the whole of its own docstring; the others, which are not even
            imported, their line of the table.
    """
    from cyclopts import App  # noqa: PLC0415 - here, so that a Ctrl-C during its import ends as everywhere

    app = App(
        name="wicket",
        help=_HELP,
        help_format="plaintext",
        version=__version__,
        version_flags=["--version", "-V"],
        exit_on_error=True,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    app.register_install_completion_command()
    for command in COMMANDS:
        module = f"wicketgate.cli.{command.name}"
        if find_spec(module) is None:
            continue
        if command.name == chosen:
            found = getattr(import_module(module), command.name)
            _reflow(found)
            app.command(found, name=command.name)
        else:
            app.command(f"{module}:{command.name}", name=command.name, help=command.help)
    return app


def _reflow(command: FunctionType | App) -> None:
    """Help that fits the terminal, of a command or of each of a group's."""
    if isinstance(command, FunctionType):
        functions = [command]
    else:
        made = [command[name].default_command for name in command if not name.startswith("-")]
        functions = [each for each in made if isinstance(each, FunctionType)]
    for function in functions:
        function.__doc__ = reflowed(function.__doc__ or "")


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line to its end.

    Returns:
        The exit code; what the user should read has been printed.
    """
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        if given and given[0].replace(",", "").isdecimal():
            # `9000 hello`: the arguments of a TCP echo whose image was changed for this one. No command is a number.
            given.insert(0, "sidecar")
        result = build(given[0] if given else "")(given)
    except WicketError as error:
        _say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`wicket ... | head`): not an error, and the flush at exit must not complain either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        _say(f"{error.filename or 'operating system'}: {error.strerror or error}")
        _debug()
        return StateError.exit_code
    except Exception as error:  # noqa: BLE001 - the last line of defence: a user never meets a traceback
        _say(f"internal error: {type(error).__name__}: {error}; WICKET_DEBUG=1 prints where; please report it")
        _debug()
        return StateError.exit_code
    return result if isinstance(result, int) else 0


def main() -> NoReturn:
    """The entry point."""
    try:
        code = run()
    except SystemExit as stop:
        # cyclopts has printed what was wrong with the arguments, and every such case is bad input to us.
        code = 0 if stop.code in {0, None} else InputError.exit_code
    gc.freeze()  # what is left ends with the process; Python would look through all of it once more for cycles
    sys.exit(code)


def _say(text: str) -> None:
    print(f"wicket: {text}", file=sys.stderr)


def _debug() -> None:
    if os.environ.get("WICKET_DEBUG"):
        traceback.print_exc()
