"""Commands that train and measure: demo, train, evaluate, pretrain."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

from saekit.cli.common import (
    Command,
    add_device,
    add_dictionaries,
    add_text,
    held_out_text,
    open_set,
    say,
    show,
    text_name,
)


def _demo(args: argparse.Namespace) -> None:
    from saekit.demo import run_demo

    run_demo(Path(args.out), tokens=args.tokens, say=say)


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
        text_name=text_name(args),
    )
    show(args, dictionaries.manifest, f"{len(dictionaries)} dictionaries in {args.out}")


def _evaluate(args: argparse.Namespace) -> None:
    from saekit.sae.evaluation import evaluate
    from saekit.sae.table import evaluation_table

    model, dictionaries = open_set(args)
    rows = evaluate(model, dictionaries, held_out_text(args), tokens=args.tokens)
    show(args, {"dictionaries": str(dictionaries.path), "layers": rows}, evaluation_table(rows))


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
    show(args, manifest, json.dumps(manifest["figures"], indent=1))


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("demo", _demo, "the whole line on the bundled model, in minutes")
    sub.add_argument("--out", default="out/demo", help="folder to write (default out/demo)")
    sub.add_argument("--tokens", type=int, default=None, help="training tokens")

    sub = command("train", _train, "train dictionaries on every layer in one pass")
    sub.add_argument("model", metavar="MODEL", help="gpt2-mini, a folder or a hub id")
    sub.add_argument("--out", required=True, help="dictionary set to write")
    add_text(sub, 1_000_000)
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
    add_device(sub)

    sub = command("evaluate", _evaluate, "measure dictionaries on held-out text")
    add_dictionaries(sub)
    add_text(sub, 50_000)

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
    add_device(sub)
