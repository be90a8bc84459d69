"""The command line: one subcommand per stage, in the order of the work.

Only this package parses arguments and prints.  Each command reads its inputs, calls one function
and shows a table; with `--json` it prints one JSON document on stdout and nothing else.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable

from saekit.cli import (
    concepts,
    doctor,
    exchange,
    features,
    heads,
    means,
    models,
    routes,
    training,
)
from saekit.errors import SaekitError

PROG = "saekit"
SUMMARY = "Dictionaries for every layer of a language model, concepts with spans, and their routes."


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; `--json` and `--help` work on each."""
    parser = argparse.ArgumentParser(prog=PROG, description=SUMMARY)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(
        name: str, run: Callable[[argparse.Namespace], None], summary: str
    ) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(run=run)
        return sub

    for stage in (models, training, exchange, features, concepts, routes, means, heads, doctor):
        stage.add(command)
    return parser


def _version() -> str:
    from saekit.version import __version__

    return f"saekit {__version__}"


def _no_memory(error: Exception) -> bool:
    words = "allocate memory", "out of memory"
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in words)


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors of the user are one sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    try:
        args.run(args)
    except SaekitError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)
    except (MemoryError, RuntimeError) as error:  # torch raises a RuntimeError
        if not _no_memory(error):
            raise
        reason = str(error).strip().splitlines()[-1:] or ["MemoryError"]
        print(
            f"{PROG}: There is not enough memory for this ({reason[0]}): ask for fewer features or "
            "tokens at once.",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
