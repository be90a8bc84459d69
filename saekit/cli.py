"""The command line: one subcommand per stage, in the order of the work.

Only this module parses arguments and prints.  Each command reads its inputs, calls one function
and shows a table; with `--json` it prints one JSON document on stdout and nothing else.
"""

import argparse
import json
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.errors import InputError, SaekitError

PROG = "saekit"
SUMMARY = "Dictionaries for every layer of GPT-2, concepts with layer spans, and their routes."


def _say(text: Any) -> None:
    """Show a text or a rich table to people."""
    if isinstance(text, str):
        print(text, flush=True)
    else:
        from rich.console import Console

        Console().print(text)


def _show(args: argparse.Namespace, document: Any, table: Any) -> None:
    """One JSON document, or a table for people."""
    if args.json:
        print(json.dumps(document, ensure_ascii=False, allow_nan=False))
    else:
        _say(table)


def _folder(args: argparse.Namespace) -> Path:
    if args.dictionaries == DEFAULT_DICTIONARIES:
        return bundled(DEFAULT_DICTIONARIES)
    return Path(args.dictionaries)


def _open(args: argparse.Namespace) -> tuple[Any, Any]:
    """The dictionary set and the model it was trained on."""
    from saekit.model.loading import load_model
    from saekit.sae.storage import DictionarySet

    device = getattr(args, "device", "cpu")
    dictionaries = DictionarySet.load(_folder(args), device=device)
    manifest = dictionaries.manifest
    model = load_model(
        args.model or manifest["model"], device=device, prepend_bos=manifest["prepend_bos"]
    )
    dictionaries.check_model(model)
    return model, dictionaries


def _text_name(args: argparse.Namespace) -> str:
    return ", ".join(Path(source).name for source in args.text or ("generated", "prose"))


def _held_out_text(args: argparse.Namespace) -> Any:
    from saekit.text.sources import open_text

    return open_text(args.text, seed=args.seed, held_out=True)


def _demo(args: argparse.Namespace) -> None:
    from saekit.demo import run_demo

    run_demo(Path(args.out), tokens=args.tokens, say=_say)


def _train(args: argparse.Namespace) -> None:
    import torch

    from saekit.coordinates import parse_layers
    from saekit.model.loading import load_model
    from saekit.sae.config import TrainConfig
    from saekit.sae.training import train
    from saekit.text.sources import open_text

    model = load_model(args.model, device=args.device, prepend_bos=not args.no_bos)
    chosen = {f.name: getattr(args, f.name, None) for f in fields(TrainConfig)}
    chosen["layers"] = tuple(parse_layers(args.layers, model.n_layers)) if args.layers else None
    config = TrainConfig(**{name: value for name, value in chosen.items() if value is not None})
    dictionaries = train(
        model,
        lambda: open_text(args.text, seed=config.seed),
        config,
        out=Path(args.out),
        resume=args.resume,
        dtype=torch.float16 if args.half else torch.float32,
        text_name=_text_name(args),
    )
    _show(args, dictionaries.manifest, f"{len(dictionaries)} dictionaries in {args.out}")


def _evaluate(args: argparse.Namespace) -> None:
    from saekit.sae.evaluation import evaluate
    from saekit.sae.table import evaluation_table

    model, dictionaries = _open(args)
    rows = evaluate(model, dictionaries, _held_out_text(args), tokens=args.tokens)
    _show(args, {"dictionaries": str(dictionaries.path), "layers": rows}, evaluation_table(rows))


def _index(args: argparse.Namespace) -> None:
    from saekit.features.build import build_index

    model, dictionaries = _open(args)
    out = Path(args.out) if args.out else dictionaries.path / "index.h5"
    build_index(model, dictionaries, _held_out_text(args), out, tokens=args.tokens)
    size = out.stat().st_size
    _show(args, {"index": str(out), "bytes": size}, f"{out}: {size / 1e6:.1f} MB")


def _query(args: argparse.Namespace) -> None:
    from saekit.coordinates import parse_feature, parse_layers
    from saekit.features import table
    from saekit.features.reader import FeatureIndex

    with FeatureIndex.open(_folder(args) / "index.h5") as index:
        layers = parse_layers(args.layers, max(index.layers)) if args.layers else None
        if args.token is not None:
            hits = index.by_token(
                args.token,
                layers=layers,
                top=args.top,
                rank=args.rank,
                max_density=args.max_density,
            )
            _show(args, table.hits_json(hits), table.hits_table(index, hits))
        elif args.feature is not None:
            record = index.feature(*parse_feature(args.feature))
            _show(args, table.record_json(record), table.record_table(record))
        else:
            model, dictionaries = _open(args)
            found = index.by_text(model, dictionaries, args.text_query, top=args.top)
            _show(args, table.live_json(found), table.live_table(found))


def _concepts(args: argparse.Namespace) -> None:
    from saekit.concepts.catalogue import Catalogue, catalogue_table
    from saekit.concepts.definitions import BUILT_IN, read_definitions
    from saekit.concepts.finding import find_concepts

    path = _folder(args) / "concepts.json"
    if args.find or args.file or not path.exists():
        definitions = read_definitions(Path(args.file)) if args.file else BUILT_IN
        model, dictionaries = _open(args)
        catalogue = find_concepts(
            model,
            dictionaries,
            _held_out_text(args),
            definitions,
            tokens=args.tokens,
            text_name=f"{_text_name(args)} (held out)",
        )
        catalogue.save(Path(args.out) if args.out else path)
    else:
        catalogue = Catalogue.load(path)
    if args.concept:
        catalogue = catalogue.only(args.concept)
    _show(args, catalogue.to_dict(), catalogue_table(catalogue))


def _traced(args: argparse.Namespace) -> Any:
    from saekit.concepts.catalogue import Catalogue
    from saekit.routes.tracing import trace

    model, dictionaries = _open(args)
    path = dictionaries.path / "concepts.json"
    return trace(
        model,
        dictionaries,
        args.prompt,
        target=args.target,
        query=args.query,
        key=args.key,
        heads=args.heads,
        catalogue=Catalogue.load(path) if path.exists() else None,
        random_sets=args.random_sets,
    )


def _trace(args: argparse.Namespace) -> None:
    from saekit.files import ensure_writable
    from saekit.routes.circuit import render

    folder = ensure_writable(args.out) if args.out else None
    circuit = _traced(args)
    if folder:
        circuit.save(folder / "circuit.json")
    _show(args, circuit.to_dict(), render(circuit))


def _report(args: argparse.Namespace) -> None:
    from saekit.files import ensure_writable
    from saekit.report.export import write_report

    folder = ensure_writable(args.out)
    written = write_report(_traced(args), folder)
    names = [str(path) for path in written]
    _show(args, {"files": names}, "\n".join(names))


def _view(args: argparse.Namespace) -> None:
    folder = _folder(args)
    if not (folder / "manifest.json").exists():
        raise InputError(f"{folder} holds no dictionary set: train one with saekit train.")
    command = [sys.executable, "-m", "streamlit", "run", str(bundled("app/viewer.py"))]
    options = {
        "server.port": args.port,
        "server.address": "127.0.0.1",
        "browser.gatherUsageStats": "false",
        "server.headless": "true",
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    print(f"The viewer is at http://127.0.0.1:{args.port} (stop it with Ctrl-C).")
    sys.stdout.flush()
    config = bundled("app/.streamlit").parent
    os.environ["SAEKIT_DICTIONARIES"] = str(folder.resolve())
    os.chdir(config)  # Streamlit reads its theme from the folder it is started in
    os.execv(sys.executable, command)


def _pretrain(args: argparse.Namespace) -> None:
    from saekit.model.pretraining import PretrainConfig, pretrain
    from saekit.text.corpora import text_files

    chosen = {f.name: getattr(args, f.name) for f in fields(PretrainConfig)}
    config = PretrainConfig(**{name: value for name, value in chosen.items() if value is not None})
    corpus = [file for path in args.text for file in text_files(path)]
    held_out = [file for path in args.held_out for file in text_files(path)]
    manifest = pretrain(
        corpus, Path(args.out), config, held_out, device=args.device, compiled=not args.eager
    )
    _show(args, manifest, json.dumps(manifest["figures"], indent=1))


def _add_text(parser: argparse.ArgumentParser, tokens: int) -> None:
    parser.add_argument(
        "--text",
        nargs="+",
        metavar="SOURCE",
        help='files, folders, "generated" or "prose" (default: both built-in sources)',
    )
    parser.add_argument("--tokens", type=int, default=tokens, help=f"how many (default {tokens:,})")
    parser.add_argument("--seed", type=int, default=0, help="of generated text")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default cpu)")


def _add_dictionaries(parser: argparse.ArgumentParser, model: bool = True) -> None:
    parser.add_argument(
        "dictionaries",
        nargs="?",
        default=DEFAULT_DICTIONARIES,
        metavar="DIR",
        help=f"a dictionary set (default {DEFAULT_DICTIONARIES})",
    )
    if model:
        parser.add_argument("--model", help="where the model is, if not where training found it")
        _add_device(parser)


def _add_trace(parser: argparse.ArgumentParser) -> None:
    _add_dictionaries(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to explain")
    parser.add_argument("--target", help="a concept, a feature (8/1234) or a token")
    parser.add_argument("--query", type=int, help="position of the target (default: the last)")
    parser.add_argument("--key", type=int, help="position it came from (default: the strongest)")
    parser.add_argument("--heads", type=int, default=5, help="how many to list (default 5)")
    parser.add_argument(
        "--random-sets", type=int, default=200, help="random head sets to compare with"
    )


def build_parser() -> argparse.ArgumentParser:
    """All subcommands; `--json` and `--help` work on each."""
    parser = argparse.ArgumentParser(prog=PROG, description=SUMMARY)
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, summary: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=summary, description=summary)
        sub.add_argument("--json", action="store_true", help="print one JSON document")
        sub.set_defaults(run=run)
        return sub

    sub = command("demo", _demo, "the whole line on the bundled model, in minutes")
    sub.add_argument("--out", default="out/demo", help="folder to write (default out/demo)")
    sub.add_argument("--tokens", type=int, default=None, help="training tokens")

    sub = command("train", _train, "train dictionaries on every layer in one pass")
    sub.add_argument("model", metavar="MODEL", help="gpt2-mini, a folder or a hub id")
    sub.add_argument("--out", required=True, help="dictionary set to write")
    _add_text(sub, 1_000_000)
    sub.add_argument("--features", type=int, dest="d_sae", help="features per layer (d_sae)")
    sub.add_argument("--k", type=int, help="active features per token")
    sub.add_argument("--architecture", choices=["topk"], help="kind of dictionary")
    sub.add_argument("--layers", help="such as 0,3-5 (default: all)")
    sub.add_argument("--lr", type=float, help="learning rate")
    sub.add_argument("--batch-tokens", type=int, help="tokens per step")
    sub.add_argument("--context", type=int, help="tokens per row")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--half", action="store_true", help="store weights in float16")
    sub.add_argument("--no-bos", action="store_true", help="do not put BOS in front")
    _add_device(sub)

    sub = command("evaluate", _evaluate, "measure dictionaries on held-out text")
    _add_dictionaries(sub)
    _add_text(sub, 50_000)

    sub = command("index", _index, "build the feature index (index.h5)")
    _add_dictionaries(sub)
    _add_text(sub, 300_000)
    sub.add_argument("--out", help="file to write (default DIR/index.h5)")

    sub = command("query", _query, "find features by token, text or id")
    _add_dictionaries(sub)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("--token", help='a token; " large" and "large" differ')
    what.add_argument("--text", dest="text_query", metavar="TEXT", help="features of a text")
    what.add_argument("--feature", help="everything about one, such as 8/1234")
    sub.add_argument("--layers", help="such as 0,3-5")
    sub.add_argument("--top", type=int, default=20, help="rows (default 20)")
    ranks = ["purity", "lift", "mean", "max", "density"]
    sub.add_argument("--rank", default="purity", choices=ranks, help="order (default purity)")
    sub.add_argument("--max-density", type=float, help="leave out features that fire more often")

    sub = command("concepts", _concepts, "named concepts with their layer spans")
    _add_dictionaries(sub)
    _add_text(sub, 150_000)
    sub.add_argument("--concept", help="only this one")
    sub.add_argument("--file", help="own definitions (TOML)")
    sub.add_argument("--find", action="store_true", help="search again even if already stored")
    sub.add_argument("--out", help="file to write (default DIR/concepts.json)")

    sub = command("trace", _trace, "the heads that route a concept on a prompt")
    _add_trace(sub)
    sub.add_argument("--out", help="folder for circuit.json")

    sub = command("report", _report, "trace, then write SVG, PNG, JSON and HTML")
    _add_trace(sub)
    sub.add_argument("--out", required=True, help="folder to write")

    sub = command("view", _view, "the viewer in the browser")
    _add_dictionaries(sub, model=False)
    sub.add_argument("--port", type=int, default=8501)

    sub = command("pretrain", _pretrain, "how gpt2-mini was made")
    sub.add_argument("--text", nargs="+", required=True, help="corpus: files or folders")
    sub.add_argument("--held-out", nargs="+", default=[], help="corpus to measure the loss on")
    sub.add_argument("--out", required=True, help="model folder to write")
    sub.add_argument("--eager", action="store_true", help="do not compile the training step")
    for name, kind in (("tokens", int), ("context", int), ("batch-tokens", int), ("seed", int)):
        sub.add_argument(f"--{name}", type=kind)
    for name, kind in (("d-model", int), ("n-layers", int), ("n-heads", int), ("n-ctx", int)):
        sub.add_argument(f"--{name}", type=kind)
    for name in ("lr", "muon-lr", "weight-decay", "clip", "generated-share", "decay-share"):
        sub.add_argument(f"--{name}", type=float)
    sub.add_argument("--vocabulary", type=int)
    sub.add_argument("--warmup-steps", type=int)
    sub.add_argument("--checkpoint-steps", type=int)
    sub.add_argument("--long-share", type=float)
    _add_device(sub)
    return parser


def _version() -> str:
    from saekit import __version__

    return f"saekit {__version__}"


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors of the user are one sentence on stderr and exit code 2."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except SaekitError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROG}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
