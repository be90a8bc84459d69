"""The command `concepts`: named concepts with their layers, in the dictionaries or in a text."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.cli.common import (
    Command,
    add_dictionaries,
    add_text,
    check_top,
    dictionary_folder,
    held_out_text,
    note,
    open_set,
    show,
    text_name,
)
from saekit.errors import InputError

if TYPE_CHECKING:
    from saekit.concepts.catalogue import Catalogue


def _concepts(args: argparse.Namespace) -> None:
    from saekit.concepts.catalogue import Catalogue
    from saekit.concepts.definitions import BUILT_IN, read_definitions
    from saekit.concepts.finding import find_concepts
    from saekit.files import ensure_writable
    from saekit.report.terminal.concept_tables import automatic_table, catalogue_table

    check_top(args)
    path = dictionary_folder(args) / "concepts.json"
    if args.find or args.file or not path.exists():
        definitions = read_definitions(Path(args.file)) if args.file else BUILT_IN
        out = Path(args.out) if args.out else path
        if args.out or not args.file:
            ensure_writable(out.parent)
        model, dictionaries = open_set(args)
        catalogue = find_concepts(
            model,
            dictionaries,
            held_out_text(args),
            definitions,
            tokens=args.tokens,
            text_name=f"{text_name(args)} (held out)",
            named=_stored_names(dictionaries.path),
        )
        if args.file and not args.out:
            note(f"not stored: give --out to keep these (the catalogue of the set is {path})")
        else:
            catalogue.save(out)
    else:
        catalogue = Catalogue.load(path)
    if args.concept:
        catalogue = catalogue.only(args.concept)
    if args.all:
        if not catalogue.automatic:
            raise InputError(
                f"{path} has no automatic concepts: name the features first with saekit names "
                f"{path.parent}, then search again with saekit concepts {path.parent} --find."
            )
        document = {"automatic": catalogue.to_dict()["automatic"]}
        show(args, document, automatic_table(catalogue.automatic, args.top))
        return
    if args.prompt is not None:
        _concepts_of_prompt(args, catalogue)
        return
    show(args, catalogue.to_dict(), catalogue_table(catalogue))


def _stored_names(folder: Path) -> Any:
    """The names of a dictionary set's features; None if there are none."""
    from saekit.features.index.feature_index import FeatureIndex
    from saekit.features.index.index_file import INDEX_FILE

    if not (folder / INDEX_FILE).is_file():
        return None
    with FeatureIndex.open(folder) as index:
        return index.names


def _concepts_of_prompt(args: argparse.Namespace, catalogue: "Catalogue") -> None:
    from dataclasses import asdict

    from saekit.concepts.spans import chain_spans, prompt_spans
    from saekit.report.terminal.concept_tables import prompt_table

    model, dictionaries = open_set(args)
    spans = prompt_spans(model, dictionaries, catalogue, args.prompt)
    chains = chain_spans(model, dictionaries, catalogue, args.prompt)
    ids = model.prompt(args.prompt)[int(model.prepend_bos) :]
    tokens = [model.vocabulary[token] for token in ids.tolist()]
    document = {
        "prompt": args.prompt,
        "tokens": tokens,
        "spans": [asdict(span) for span in spans],
        "chains": [asdict(chain) for chain in chains],
    }
    show(args, document, prompt_table(tokens, spans, chains))


def add(command: Command) -> None:
    """The subcommand of this module."""
    sub = command("concepts", _concepts, "named concepts with their layer spans")
    add_dictionaries(sub)
    add_text(sub, 300_000)
    sub.add_argument("--concept", help="only this one")
    sub.add_argument(
        "--all", action="store_true", help="instead, every name that is reliable on held-out text, "
        "with its features (needs saekit names, then --find)",
    )  # fmt: skip
    sub.add_argument("--top", type=int, help="only so many names of --all")
    sub.add_argument("--prompt", help="instead, where the concepts are in this text: their layers")
    sub.add_argument("--file", help="own definitions (TOML)")
    sub.add_argument("--find", action="store_true", help="search again even if already stored")
    sub.add_argument("--out", help="file to write (default DIR/concepts.json; with --file none)")
