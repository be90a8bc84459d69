"""Commands that look into dictionaries: index, query, concepts."""

import argparse
from pathlib import Path

from saekit.cli.common import (
    Command,
    add_dictionaries,
    add_text,
    dictionary_folder,
    held_out_text,
    note,
    open_set,
    show,
    text_name,
)


def _index(args: argparse.Namespace) -> None:
    from saekit.features.build import build_index

    model, dictionaries = open_set(args)
    out = Path(args.out) if args.out else dictionaries.path / "index.h5"
    build_index(model, dictionaries, held_out_text(args), out, tokens=args.tokens)
    size = out.stat().st_size
    show(args, {"index": str(out), "bytes": size}, f"{out}: {size / 1e6:.1f} MB")


def _query(args: argparse.Namespace) -> None:
    from saekit.coordinates import parse_feature, parse_layers
    from saekit.features import table
    from saekit.features.reader import FeatureIndex

    with FeatureIndex.open(dictionary_folder(args) / "index.h5") as index:
        layers = parse_layers(args.layers, max(index.layers)) if args.layers else None
        if args.token is not None:
            hits = index.by_token(
                args.token,
                layers=layers,
                top=20 if args.top is None else args.top,
                rank=args.rank,
                max_density=args.max_density,
            )
            show(args, table.hits_json(hits), table.hits_table(index, hits, args.rank))
        elif args.feature is not None:
            record = index.feature(*parse_feature(args.feature))
            show(args, table.record_json(record), table.record_table(record))
        else:
            model, dictionaries = open_set(args)
            found = index.by_text(
                model,
                dictionaries,
                args.text_query,
                top=4 if args.top is None else args.top,
                layers=layers,
                max_density=args.max_density,
            )
            show(args, table.live_json(found), table.live_table(found))


def _concepts(args: argparse.Namespace) -> None:
    from saekit.concepts.catalogue import Catalogue, catalogue_table
    from saekit.concepts.definitions import BUILT_IN, read_definitions
    from saekit.concepts.finding import find_concepts

    path = dictionary_folder(args) / "concepts.json"
    if args.find or args.file or not path.exists():
        definitions = read_definitions(Path(args.file)) if args.file else BUILT_IN
        model, dictionaries = open_set(args)
        catalogue = find_concepts(
            model,
            dictionaries,
            held_out_text(args),
            definitions,
            tokens=args.tokens,
            text_name=f"{text_name(args)} (held out)",
        )
        if args.file and not args.out:
            note(f"not stored: give --out to keep these (the catalogue of the set is {path})")
        else:
            catalogue.save(Path(args.out) if args.out else path)
    else:
        catalogue = Catalogue.load(path)
    if args.concept:
        catalogue = catalogue.only(args.concept)
    show(args, catalogue.to_dict(), catalogue_table(catalogue))


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("index", _index, "build the feature index (index.h5)")
    add_dictionaries(sub)
    add_text(sub, 300_000)
    sub.add_argument("--out", help="file to write (default DIR/index.h5)")

    sub = command("query", _query, "find features by token, text or id")
    add_dictionaries(sub)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--token", help='a token; " large" and "large" differ')
    what.add_argument("--text", dest="text_query", metavar="TEXT", help="features of a text")
    what.add_argument("--feature", help="everything about one, such as 8/1234")
    sub.add_argument("--layers", help="such as 0,3-5")
    sub.add_argument(
        "--top",
        type=int,
        help="rows for a token (default 20), features per position and layer of a text (default 4)",
    )
    ranks = ["match", "purity", "lift", "mean", "max", "density"]
    sub.add_argument(
        "--rank", default="match", choices=ranks, help="order of the features of a token "
        "(default match: how exclusively and reliably a feature is one of it)",
    )  # fmt: skip
    sub.add_argument(
        "--max-density", type=float, help="leave out features that fire on a larger share of text"
    )

    sub = command("concepts", _concepts, "named concepts with their layer spans")
    add_dictionaries(sub)
    add_text(sub, 300_000)
    sub.add_argument("--concept", help="only this one")
    sub.add_argument("--file", help="own definitions (TOML)")
    sub.add_argument("--find", action="store_true", help="search again even if already stored")
    sub.add_argument("--out", help="file to write (default DIR/concepts.json; with --file none)")
