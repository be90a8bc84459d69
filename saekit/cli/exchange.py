"""Commands that exchange dictionaries with other libraries: import, export."""

import argparse

from saekit.cli.common import Command, add_dictionaries, dictionary_folder, show

LIBRARIES = ("sparsify", "dictionary_learning")


def _import(args: argparse.Namespace) -> None:
    from saekit.sae.interchange.sets import import_dictionaries

    found = import_dictionaries(args.source, args.out, args.model, args.ids)
    kinds = sorted({dictionary.training_architecture for dictionary in found})
    layers = ", ".join(map(str, found.layers))
    show(
        args,
        found.manifest,
        f"{len(found)} dictionaries ({', '.join(kinds)}) of layers {layers} of "
        f"{found.manifest['model']} in {args.out}",
    )


def _export(args: argparse.Namespace) -> None:
    from saekit.coordinates import parse_layers
    from saekit.sae.interchange.sets import export_dictionaries
    from saekit.sae.storage.dictionary_set import DictionarySet

    dictionaries = DictionarySet.load(dictionary_folder(args))
    layers = parse_layers(args.layers, max(dictionaries.layers)) if args.layers else None
    written = export_dictionaries(dictionaries, args.format, args.out, layers)
    names = [str(path) for path in written]
    show(args, {"format": args.format, "folders": names}, "\n".join(names))


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("import", _import, "make a dictionary set of another library's dictionaries")
    sub.add_argument(
        "source",
        metavar="SOURCE",
        help="a folder of SAELens, sparsify or dictionary_learning, or a SAELens release "
        "such as gpt2-small-res-jb",
    )
    sub.add_argument("--out", required=True, help="dictionary set to write")
    sub.add_argument("--model", help="gpt2, gpt2-mini, a folder or a hub id (default: as stored)")
    sub.add_argument(
        "--id", dest="ids", action="append", metavar="ID", help="one dictionary of a release"
    )

    sub = command("export", _export, "write dictionaries for another library")
    add_dictionaries(sub, model=False)
    sub.add_argument("--format", required=True, choices=LIBRARIES, help="whose form to write")
    sub.add_argument("--out", required=True, help="folder to write into")
    sub.add_argument("--layers", help="such as 0,3-5 (default: all)")
