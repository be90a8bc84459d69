"""The command that scores attention heads: heads."""

import argparse
from typing import Any

from saekit.cli.common import Command, add_device, show


def _relations(args: argparse.Namespace) -> None:
    from rich.table import Table

    from saekit.heads.relations import open_relation, relation_names

    relations = [open_relation(name) for name in relation_names()]
    table = Table("relation", "category", "pairs", "k", "what", "source")
    for r in relations:
        table.add_row(r.name, r.category, str(len(r.pairs)), str(r.default_k), r.about, r.source)
    rows = [
        {"name": r.name, "category": r.category, "pairs": len(r.pairs), "k": r.default_k,
         "about": r.about, "source": r.source}
        for r in relations
    ]  # fmt: skip
    show(args, {"relations": rows}, table)


def _heads(args: argparse.Namespace) -> None:
    from saekit.report.heads.atlas_files import check_out, write_atlas
    from saekit.report.terminal.head_tables import render

    if args.relations:
        _relations(args)
        return
    if args.out:
        check_out(args.out)
    scores = _scored(args)
    if args.out:
        write_atlas(scores, args.out, args.pairs)
    show(args, scores.to_dict(args.pairs), render(scores))


def _scored(args: argparse.Namespace) -> Any:
    from saekit.heads.atlas import build_atlas

    return build_atlas(
        args.model,
        args.relation,
        args.k,
        classes=not args.no_classes,
        dynamic=args.dynamic,
        causal=args.causal,
        salient=args.salient,
        device=args.device,
        seed=args.seed,
    )


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("heads", _heads, "score every head for a relation: copying names, opposites, ...")
    sub.add_argument(
        "model", nargs="?", default="gpt2-mini", metavar="MODEL",
        help="gpt2-mini, a folder or a hub id (default gpt2-mini)",
    )  # fmt: skip
    sub.add_argument(
        "--relation", default="name_copying", metavar="NAME|FILE",
        help="a relation of saekit, a CSV or TSV with the columns source,target, or a JSON list "
        "of [source, target] (default name_copying)",
    )  # fmt: skip
    sub.add_argument("--relations", action="store_true", help="list saekit's relations and stop")
    sub.add_argument("--k", type=int, help="places that count (default: copying 1, others 10)")
    sub.add_argument(
        "--out", metavar="FILE",
        help="write .json, .csv, .svg, .png or .html by its suffix; a folder gets all",
    )  # fmt: skip
    sub.add_argument("--pairs", action="store_true", help="say per head which pairs it maps")
    sub.add_argument(
        "--dynamic", action="store_true", help="also score what heads write on prompts"
    )
    sub.add_argument(
        "--causal", action="store_true", help="also remove the highest heads on prompts"
    )
    sub.add_argument(
        "--salient", nargs="*", metavar="HEAD",
        help="also list what heads map without any relation: L9-H9 ... (default: the highest)",
    )  # fmt: skip
    sub.add_argument("--no-classes", action="store_true", help="draw no classes")
    sub.add_argument("--seed", type=int, default=0, help="of shuffles, stories and random heads")
    add_device(sub)
