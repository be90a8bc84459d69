"""Commands that train and measure: demo, train, evaluate, pretrain."""

import argparse
import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from saekit.errors import InputError, SaekitError
from saekit.sae.training.config import ARCHITECTURES

if TYPE_CHECKING:
    from saekit.activations import CachedActivations


def _demo(args: argparse.Namespace) -> None:
    from saekit.demo import run_demo

    silent: Callable[[Any], None] = lambda text: None  # noqa: E731
    seconds = run_demo(Path(args.out), tokens=args.tokens, say=silent if args.json else say)
    if args.json:
        show(args, {"out": args.out, "seconds": seconds}, "")


def _layer_settings(given: list[str], n_layers: int) -> dict[int, dict[str, Any]]:
    """`10-12:d_sae=8192,k=16` -> {10: {"d_sae": 8192, "k": 16}, 11: ..., 12: ...}."""
    from saekit.coordinates import parse_layers
    from saekit.sae.training.config import LayerConfig

    kinds = {f.name: type(getattr(LayerConfig(), f.name)) for f in fields(LayerConfig)}
    settings: dict[int, dict[str, Any]] = {}
    for text in given:
        layers, _, assignments = text.partition(":")
        chosen: dict[str, Any] = {}
        for assignment in assignments.split(","):
            name, _, value = assignment.partition("=")
            if name not in kinds or kinds[name] is tuple:
                known = ", ".join(n for n, kind in kinds.items() if kind is not tuple)
                raise InputError(f'--at "{text}": "{name}" is not one of {known}.')
            try:
                chosen[name] = kinds[name](value)
            except ValueError as error:
                raise InputError(f'--at "{text}": {name} cannot be "{value}".') from error
        for layer in parse_layers(layers, n_layers):
            settings[layer] = {**settings.get(layer, {}), **chosen}
    return settings


def _cached(
    model: Any, text: Any, config: Any, world: Any, path: Path, name: str
) -> "CachedActivations":
    """The activation cache of a run: written first where it is missing or was cut short."""
    from saekit.activations import CachedActivations, check_layers, write_cache

    layers = check_layers(model, config.layers)
    needed = config.steps * config.batch_tokens
    failure = None
    if world.is_first:
        try:
            write_cache(
                model, text, path, needed, layers, config.context, name,
                precision="bfloat16" if config.bf16 else "float32", bf16=config.bf16,
            )  # fmt: skip
        except SaekitError as error:
            failure = error
    world.check(failure)
    cache = CachedActivations(path, world.own(layers), model.device)
    cache.check(model, config.context, needed, name, exact=not config.bf16)
    return cache


def _train(args: argparse.Namespace) -> None:
    import torch

    from saekit.activations import check_length
    from saekit.coordinates import parse_layers
    from saekit.model.loading import load_model
    from saekit.sae.training.config import TrainConfig
    from saekit.sae.training.distributed import join, leave, local_device
    from saekit.sae.training.metrics import tensorboard_sink, wandb_sink
    from saekit.sae.training.trainer import train
    from saekit.text.sources import open_text

    model = load_model(args.model, device=local_device(args.device), prepend_bos=not args.no_bos)
    chosen = {f.name: getattr(args, f.name, None) for f in fields(TrainConfig)}
    chosen["layers"] = tuple(parse_layers(args.layers, model.n_layers)) if args.layers else None
    chosen["per_layer"] = _layer_settings(args.at, model.n_layers) or None
    chosen["bf16"] = False if args.float32 else None
    config = TrainConfig(**{name: value for name, value in chosen.items() if value is not None})
    config.check()
    check_length(model, args.text, config.context)
    world = join(args.device)
    sinks = []
    if args.tensorboard and world.is_first:
        sinks.append(tensorboard_sink(Path(args.tensorboard)))
    if args.wandb and world.is_first:
        sinks.append(wandb_sink(args.wandb, config.to_dict()))
    text: Any = lambda: open_text(args.text, seed=config.seed)  # noqa: E731
    if args.cache:
        text = _cached(model, text, config, world, Path(args.cache), text_name(args))
    dictionaries = train(
        model,
        text,
        config,
        out=Path(args.out),
        resume=args.resume,
        dtype=torch.float16 if args.half else torch.float32,
        text_name=text_name(args),
        sinks=sinks,
        world=world,
    )
    if world.is_first:
        show(args, dictionaries.manifest, f"{len(dictionaries)} dictionaries in {args.out}")
    leave(world)


def _evaluate(args: argparse.Namespace) -> None:
    from saekit.activations import check_length
    from saekit.report.terminal.dictionary_table import evaluation_table
    from saekit.sae.evaluation import DEFAULT_CONTEXT, evaluate

    model, dictionaries = open_set(args)
    context = dictionaries.manifest.get("training", {}).get("context") or DEFAULT_CONTEXT
    check_length(model, args.text, min(context, model.n_ctx))
    rows = evaluate(model, dictionaries, held_out_text(args), tokens=args.tokens)
    show(args, {"dictionaries": str(dictionaries.path), "layers": rows}, evaluation_table(rows))


def _pretrain(args: argparse.Namespace) -> None:
    from saekit.model.pretraining.run import PretrainConfig, pretrain
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
    sub.add_argument("--k", type=int, help="active features per token (TopK family)")
    sub.add_argument("--architecture", choices=ARCHITECTURES, help="kind of dictionary")
    sub.add_argument("--sparsity", type=float, help="penalty of jumprelu, gated and standard")
    sub.add_argument("--layers", help="such as 0,3-5 (default: all)")
    sub.add_argument(
        "--at",
        action="append",
        default=[],
        metavar="LAYERS:NAME=VALUE,...",
        help="other settings at some layers, such as 10-12:d_sae=8192,k=16; may be repeated",
    )
    sub.add_argument("--lr", type=float, help="learning rate")
    sub.add_argument("--batch-tokens", type=int, help="tokens per step")
    sub.add_argument("--buffer-tokens", type=int, help="tokens shuffled together")
    sub.add_argument("--checkpoint-tokens", type=int, help="tokens between checkpoints")
    sub.add_argument("--context", type=int, help="tokens per row")
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--cache", metavar="FILE.h5", help="write activations there, or reuse them")
    sub.add_argument("--tensorboard", metavar="DIR", help="also write TensorBoard events")
    sub.add_argument("--wandb", metavar="PROJECT", help="also send to Weights & Biases")
    sub.add_argument("--float32", action="store_true", help="no bfloat16 anywhere: slower, exact")
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
