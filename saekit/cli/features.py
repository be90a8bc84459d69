"""Commands that look into dictionaries: index, names, query."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from saekit.cli.common import (
    Command,
    add_dictionaries,
    add_text,
    check_top,
    dictionary_folder,
    held_out_text,
    open_set,
    show,
    text_name,
)
from saekit.coordinates import parse_feature
from saekit.errors import InputError

if TYPE_CHECKING:
    from saekit.features.index.feature_index import FeatureIndex


def _index(args: argparse.Namespace) -> None:
    from saekit.features.index.build import CHECKPOINT_TOKENS, build_index
    from saekit.features.index.index_file import INDEX_FILE
    from saekit.features.names.names import make_names
    from saekit.text.parts import INDEX, only_parts

    model, dictionaries = open_set(args)
    out = Path(args.out) if args.out else dictionaries.path / INDEX_FILE
    text = only_parts(held_out_text(args), INDEX)
    build_index(
        model, dictionaries, text, out, tokens=args.tokens, examples=args.examples, seed=args.seed,
        checkpoint_tokens=CHECKPOINT_TOKENS, resume=args.resume,
    )  # fmt: skip
    document: dict[str, Any] = {"index": str(out), "bytes": out.stat().st_size}
    lines = [f"{out}: {out.stat().st_size / 1e6:.1f} MB"]
    if args.names:
        path = make_names(
            model, dictionaries, out, held_out_text(args), tokens=_name_tokens(args.tokens),
            text_name=text_name(args), seed=args.seed,
        )  # fmt: skip
        document |= _names_document(out, path)
        lines.append(_names_table(document))
    show(args, document, "\n".join(lines))


def _name_tokens(tokens: int) -> int:
    """Half as many tokens for the scores as for the index: a bounded part of the time."""
    return max(1, min(tokens // 2, 120_000))


def _names(args: argparse.Namespace) -> None:
    from saekit.features.index.index_file import INDEX_FILE
    from saekit.features.names.names import make_names

    model, dictionaries = open_set(args)
    index = dictionaries.path / INDEX_FILE
    path = make_names(
        model, dictionaries, index, held_out_text(args), args.out, args.tokens,
        text_name=text_name(args), seed=args.seed, labeller=_labeller(args),
        features=[parse_feature(text) for text in args.features or ()] or None,
    )  # fmt: skip
    document = _names_document(index, path)
    show(args, document, _names_table(document))


def _labeller(args: argparse.Namespace) -> Any:
    """The chat model that was asked for, None for the rules."""
    if not args.labeller:
        if args.features:
            raise InputError("--features needs a --labeller: the rules name all features.")
        return None
    if not args.features or not args.labeller_model:
        raise InputError(
            "--labeller asks a model for each feature: give --labeller-model and --features 8/1234."
        )
    from saekit.features.names.labellers import ChatLabeller

    return ChatLabeller(args.labeller, args.labeller_model, os.environ.get("SAEKIT_LABELLER_KEY"))


def _names_document(index: Path, names: Path) -> dict[str, Any]:
    from saekit.features.index.index_file import IndexFile
    from saekit.features.names.name_file import FeatureNames

    with IndexFile.open(index) as opened:
        made = FeatureNames.open(names, opened)
    return {"names": str(names), "tokens": made.n_tokens, "summary": made.summary}


def _names_table(document: dict[str, Any]) -> str:
    from saekit.features.names.name_file import KINDS

    summary = document["summary"]
    lines = [
        f"{document['names']}: {summary['named']:,} of {summary['features']:,} features have a "
        "name; scores on held-out text (null: the name of another feature):",
        "  kind       names  measured  detection (null)  >= 0.9  fuzzing (null)     F1  AUROC",
    ]
    for kind in KINDS[1:]:
        if row := summary.get(kind):
            cells = [
                "  n/a" if row[name] is None else f"{row[name]:5.3f}"
                for name in (
                    "detection", "null_detection", "fuzzing", "null_fuzzing", "f1", "auroc"
                )
            ]  # fmt: skip
            lines.append(
                f"  {kind:8} {row['names']:>7,}  {row['measured']:>8,}   {cells[0]} ({cells[1]})  "
                f"{row['reliable']:>6,}  {cells[2]} ({cells[3]})  {cells[4]}  {cells[5]}"
            )
    return "\n".join(lines)


def _query(args: argparse.Namespace) -> None:
    from saekit.coordinates import parse_layers
    from saekit.features.index.feature_index import FeatureIndex
    from saekit.report.terminal import feature_tables as table

    if args.csv and args.json:
        raise InputError("--csv and --json are two forms of one answer: choose one.")
    check_top(args)
    with FeatureIndex.open(dictionary_folder(args)) as index:
        layers = parse_layers(args.layers, max(index.layers)) if args.layers else None
        if args.token is not None:
            hits = index.by_token(
                args.token,
                layers=layers,
                top=20 if args.top is None else args.top,
                rank=args.rank,
                max_density=args.max_density,
            )
            _answer(
                args,
                table.hits_json(hits),
                lambda: table.hits_table(index, hits, args.rank),
                lambda: table.hits_csv(hits),
            )
        elif args.feature is not None:
            record = index.feature(*parse_feature(args.feature))
            place = [(record.layer, record.feature)]
            _answer(
                args,
                table.record_json(record),
                lambda: table.record_table(record),
                lambda: table.named_csv(index, place),
            )
        elif args.concept is not None:
            found = _of_concept(index, args.concept)
            wanted = [place for place in found if layers is None or place[0] in layers]
            wanted = wanted[: args.top]
            _answer(
                args,
                table.named_json(index, wanted),
                lambda: table.named_table(index, wanted),
                lambda: table.named_csv(index, wanted),
            )
        else:
            model, dictionaries = open_set(args)
            text = index.by_text(
                model,
                dictionaries,
                args.text_query,
                top=4 if args.top is None else args.top,
                layers=layers,
                max_density=args.max_density,
            )
            _answer(
                args,
                table.live_json(text),
                lambda: table.live_table(text),
                lambda: table.live_csv(text),
            )


def _answer(
    args: argparse.Namespace, document: Any, table: Callable[[], Any], csv: Callable[[], str]
) -> None:
    """An answer in the form that was asked for."""
    if args.csv:
        print(csv(), end="", flush=True)
    else:
        show(args, document, None if args.json else table())


def _of_concept(index: "FeatureIndex", name: str) -> list[tuple[int, int]]:
    """The features of a stored concept, followed by all that have this name."""
    from saekit.concepts.catalogue import Catalogue

    path = index.path.parent / "concepts.json"
    known = Catalogue.load(path).concepts if path.exists() else []
    found = [
        parse_feature(text) for concept in known if concept.name == name
        for text in concept.feature_names()
    ]  # fmt: skip
    named = list(index.names.named(name)) if index.names else []
    if not found and not named:
        listed = ", ".join(concept.name for concept in known) or "none"
        raise InputError(
            f'Neither a concept nor a feature is called "{name}"; concepts are {listed}.'
        )
    return list(dict.fromkeys([*found, *named]))


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("index", _index, "build the feature index (index.h5)")
    add_dictionaries(sub)
    add_text(sub, 300_000)
    sub.add_argument("--out", help="file to write (default DIR/index.h5)")

    sub.add_argument(
        "--examples", type=int, default=10, help="strongest places kept per feature (default 10)"
    )
    sub.add_argument(
        "--resume", action="store_true", help="go on with a build that was stopped (it keeps what "
        "is done after every 250,000 tokens)",
    )  # fmt: skip
    sub.add_argument(
        "--no-names", dest="names", action="store_false", help="no names (see saekit names)"
    )

    sub = command("names", _names, "name the features of an index, and score the names (names.h5)")
    add_dictionaries(sub)
    add_text(sub, 120_000)
    sub.add_argument("--out", help="file to write (default DIR/names.h5)")
    sub.add_argument(
        "--labeller", metavar="URL", help="an OpenAI-compatible endpoint that names instead of the "
        "rules, such as http://127.0.0.1:8000/v1 (a key is read from SAEKIT_LABELLER_KEY)",
    )  # fmt: skip
    sub.add_argument("--labeller-model", metavar="NAME", help="the model to ask there")
    sub.add_argument(
        "--features", nargs="+", metavar="8/1234", help="which features it names; all others keep "
        "the names by rules",
    )  # fmt: skip

    sub = command("query", _query, "find features by token, text, concept or id")
    add_dictionaries(sub)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--token", help='a token; " large" and "large" differ')
    what.add_argument("--text", dest="text_query", metavar="TEXT", help="features of a text")
    what.add_argument("--feature", help="everything about one, such as 8/1234")
    what.add_argument("--concept", help="features of a concept, and all that have this name")
    sub.add_argument("--csv", action="store_true", help="comma-separated values with a header")
    sub.add_argument("--layers", help="such as 0,3-5")
    sub.add_argument(
        "--top",
        type=int,
        help="rows for a token (default 20), features per position and layer of a text (default 4)",
    )
    ranks = ["match", "purity", "lift", "mean", "max", "density"]
    sub.add_argument(
        "--rank", default="match", choices=ranks, help="order of the features of a token that fire "
        "on at least a tenth of its positions; the first five of each layer are always listed "
        "(default match: how exclusively and reliably a feature is one of it)",
    )  # fmt: skip
    sub.add_argument(
        "--max-density", type=float, help="leave out features that fire on a larger share of text"
    )
