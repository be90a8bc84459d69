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
    add_text_source,
    held_out_text,
    open_set,
    say,
    show,
    text_name,
)
from saekit.cli.flags import add_flags, field_options, given
from saekit.errors import InputError, SaekitError
from saekit.model.pretraining.recipe import PretrainConfig
from saekit.sae.training.config import LayerConfig, TrainConfig

if TYPE_CHECKING:
    from saekit.activations import CachedActivations


def _demo(args: argparse.Namespace) -> None:
    from saekit.demo import run_demo

    silent: Callable[[Any], None] = lambda text: None  # noqa: E731
    seconds = run_demo(Path(args.out), tokens=args.tokens, say=silent if args.json else say)
    if args.json:
        show(args, {"out": args.out, "seconds": seconds}, "")


def _layer_settings(texts: list[str], n_layers: int) -> dict[int, dict[str, Any]]:
    """`10-12:d_sae=8192,k=16` -> {10: {"d_sae": 8192, "k": 16}, 11: ..., 12: ...}."""
    from saekit.coordinates import parse_layers

    options = {f.name: field_options(LayerConfig, f.name) for f in fields(LayerConfig)}
    known = [name for name, option in options.items() if "nargs" not in option]
    settings: dict[int, dict[str, Any]] = {}
    for text in texts:
        layers, _, assignments = text.partition(":")
        chosen: dict[str, Any] = {}
        for assignment in assignments.split(","):
            name, _, value = assignment.partition("=")
            if name not in known:
                raise InputError(f'--at "{text}": "{name}" is not one of {", ".join(known)}.')
            try:
                chosen[name] = options[name].get("type", str)(value)
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
    from saekit.sae.training.distributed import join, leave, local_device
    from saekit.sae.training.metrics import tensorboard_sink, wandb_sink
    from saekit.sae.training.trainer import train
    from saekit.text.sources import open_text

    model = load_model(args.model, device=local_device(args.device), prepend_bos=not args.no_bos)
    chosen = given(args, TrainConfig)
    chosen.pop("layers", None)  # a text so far; an empty one asks for all
    if args.layers:
        chosen["layers"] = tuple(parse_layers(args.layers, model.n_layers))
    chosen["per_layer"] = _layer_settings(args.per_layer, model.n_layers)
    config = TrainConfig(**chosen)
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
    from saekit.model.pretraining.run import pretrain
    from saekit.text.corpora import text_files

    config = PretrainConfig(**given(args, PretrainConfig))
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
    add_text_source(sub)
    add_flags(
        sub, TrainConfig, skip=("layers", "per_layer"), other_names={"d_sae": "--features"},
        defaults={"tokens": 1_000_000},
    )  # fmt: skip
    sub.add_argument("--layers", metavar="LAYERS", help="such as 0,3-5 (default: all)")
    sub.add_argument(
        "--at", dest="per_layer", action="append", default=[], metavar="LAYERS:NAME=VALUE,...",
        help="other settings at some layers, such as 10-12:d_sae=8192,k=16; may be repeated",
    )  # fmt: skip
    sub.add_argument("--resume", action="store_true", help="continue the run in --out")
    sub.add_argument("--cache", metavar="FILE.h5", help="write activations there, or reuse them")
    sub.add_argument("--tensorboard", metavar="DIR", help="also write TensorBoard events")
    sub.add_argument("--wandb", metavar="PROJECT", help="also send to Weights & Biases")
    sub.add_argument(
        "--float32", dest="bf16", action="store_false", default=None,
        help="no bfloat16 anywhere (the same as --no-bf16): slower, exact",
    )  # fmt: skip
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
    add_flags(sub, PretrainConfig)
    add_device(sub)
