"""How much of what one training finds does another seed find?  Share of features and concepts.

    python benchmarks/seeds.py [--sets DIR DIR] [--train N] [--out DIR] [--tokens N] [--threads 1]

Two dictionary sets of gpt2-mini, alike in all but the seed of weights and order (`--train` makes
them on the built-in text; `--sets` takes trained ones), are compared on held-out text, layer by
layer and in this direction: a feature of the first set is found again if it and a feature of the
second are each other's best partner (cosine and activation correlation, as between layers; see
saekit.concepts.matching) with a cosine of at least 0.5 and a correlation of at least 0.4, or 0.7
and 0.7 ("strong").  Of two sets of one layer this is the positive control of the matching: between
neighbouring layers no larger share can be expected to be linked ("next_layer", the first set's).
A built-in concept is found in both if both sets have a layer at which it is found; "layers" are the
layers at which both find it, of those at which either does.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

import saekit
from saekit.activations import sparse
from saekit.concepts.catalogue import Catalogue
from saekit.concepts.finding import find_concepts
from saekit.concepts.matching import START
from saekit.concepts.observations import observe
from saekit.concepts.pairing import MIN_JOINT, LayerPairs, match_pair
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.sae.training.config import TrainConfig
from saekit.text.sources import open_text

STRONG = (0.7, 0.7)
SEEDS = (1, 2)


def share(pairs: LayerPairs, thresholds: tuple[float, float]) -> float:
    """Links / features of the first side that are active at all."""
    return float(pairs.above(thresholds).sum() / max(pairs.trials, 1))


def compare(model: Any, sets: list[DictionarySet], tokens: int) -> list[dict[str, Any]]:
    """One row per layer."""
    seen = [observe(model, one, open_text(held_out=True), {}, tokens=tokens).layers for one in sets]
    rows = []
    for layer in sets[0].layers:
        side = [(active[layer], one[layer].W_dec) for active, one in zip(seen, sets, strict=True)]
        twin = match_pair((layer, layer), *side)
        row = {
            "layer": layer,
            "features": int((sparse.counts(seen[0][layer]) >= MIN_JOINT).sum()),
            "both_seeds": share(twin, START),
            "both_seeds_strong": share(twin, STRONG),
        }
        if layer + 1 in sets[0].layers:
            after = (seen[0][layer + 1], sets[0][layer + 1].W_dec)
            following = match_pair((layer, layer + 1), side[0], after)
            row |= {
                "next_layer": share(following, START),
                "next_layer_strong": share(following, STRONG),
            }
        rows.append({name: round(value, 4) for name, value in row.items()})
        print(json.dumps(rows[-1]), file=sys.stderr)
    return rows


def concepts(model: Any, sets: list[DictionarySet], tokens: int) -> dict[str, Any]:
    """The built-in concepts in both sets."""
    found: list[Catalogue] = [
        find_concepts(model, one, open_text(held_out=True), tokens=tokens) for one in sets
    ]
    report: dict[str, Any] = {}
    for one, other in zip(found[0].concepts, found[1].concepts, strict=True):
        layers = set(one.found_layers), set(other.found_layers)
        report[one.name] = {
            "found_in_both": bool(layers[0] and layers[1]),
            "spans": [one.span, other.span],
            "layers": [len(layers[0] & layers[1]), len(layers[0] | layers[1])],
            "best_f1": [one.best.f1, other.best.f1],
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs=2, type=Path)
    parser.add_argument("--train", type=int, default=1_000_000, help="tokens of each training")
    parser.add_argument("--out", type=Path, default=Path("out/seeds"))
    parser.add_argument("--tokens", type=int, default=100_000, help="held-out tokens to compare on")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    started, model = time.time(), saekit.load_model("gpt2-mini")
    if options.sets:
        sets = [DictionarySet.load(path) for path in options.sets]
    else:
        sets = [
            saekit.train(
                model, open_text(), TrainConfig(tokens=options.train, lr=2e-3, seed=seed),
                options.out / f"seed{seed}", text_name="generated, prose",
            )
            for seed in SEEDS
        ]  # fmt: skip
    rows = compare(model, sets, options.tokens)
    averages = {
        name: round(float(np.mean([row[name] for row in rows if name in row])), 4)
        for name in ("both_seeds", "both_seeds_strong", "next_layer", "next_layer_strong")
    }
    report = {
        "trainings": [one.manifest["training"] for one in sets],
        "tokens": options.tokens,
        "mean": averages,
        "layers": rows,
        "concepts": concepts(model, sets, options.tokens),
        "wall_s": round(time.time() - started),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
