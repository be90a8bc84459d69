"""What several commands share: output, opening a dictionary set, common options."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.errors import InputError

Command = Callable[[str, Callable[[argparse.Namespace], None], str], argparse.ArgumentParser]
"""Adds a subcommand: (name, what to run, one-line help) -> its parser."""


def say(text: Any) -> None:
    """Show a text or a rich table to people."""
    if isinstance(text, str):
        print(text, flush=True)
    else:
        from rich.console import Console

        Console().print(text)


def note(text: str) -> None:
    """Tell people something that is not the result."""
    print(text, file=sys.stderr, flush=True)


def show(args: argparse.Namespace, document: Any, table: Any) -> None:
    """One JSON document, or a table for people."""
    if args.json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        say(table)


def dictionary_folder(args: argparse.Namespace) -> Path:
    if args.dictionaries == DEFAULT_DICTIONARIES:
        return bundled(DEFAULT_DICTIONARIES)
    return Path(args.dictionaries)


def open_set(args: argparse.Namespace) -> tuple[Any, Any]:
    """The dictionary set and the model it was trained on."""
    from saekit.model.devices import check_device
    from saekit.model.loading import load_model
    from saekit.sae.storage.dictionary_set import DictionarySet

    device = getattr(args, "device", "cpu")
    check_device(device)
    dictionaries = DictionarySet.load(dictionary_folder(args), device=device)
    manifest = dictionaries.manifest
    model = load_model(
        args.model or manifest["model"], device=device, prepend_bos=manifest["prepend_bos"]
    )
    dictionaries.check_model(model)
    return model, dictionaries


def text_name(args: argparse.Namespace) -> str:
    sources = args.text or ("generated", "prose")
    return ", ".join(Path(s).name if Path(s).exists() else s for s in sources)


def held_out_text(args: argparse.Namespace) -> Any:
    from saekit.text.sources import open_text

    return open_text(args.text, seed=args.seed, held_out=True)


def add_text_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="SOURCE",
        help="files or folders (txt, md, jsonl, also .gz and .zst; parquet; ids as .npy or .bin), "
        'hf:owner/name[:config[:split]], "generated" or "prose" (default: both built-in sources)',
    )


def add_text(parser: argparse.ArgumentParser, tokens: int) -> None:
    add_text_source(parser)
    parser.add_argument("--tokens", type=int, default=tokens, help=f"how many (default {tokens:,})")
    parser.add_argument("--seed", type=int, default=0, help="of generated text")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")


def add_dictionaries(parser: argparse.ArgumentParser, model: bool = True) -> None:
    parser.add_argument(
        "dictionaries",
        nargs="?",
        default=DEFAULT_DICTIONARIES,
        metavar="DIR",
        help=f"a dictionary set (default {DEFAULT_DICTIONARIES})",
    )
    if model:
        parser.add_argument("--model", help="where the model is, if not where training found it")
        add_device(parser)


def check_top(args: argparse.Namespace) -> None:
    """Refuse to show no rows, or fewer.

    Raises:
        InputError: `--top` below 1.
    """
    if args.top is not None and args.top < 1:
        raise InputError(f"--top is {args.top}; ask for at least 1.")
