"""Do the attribution identities hold?  Largest errors over random (prompt, target) pairs, as JSON.

    python benchmarks/completeness.py [--pairs 200] [--models mini gated small] [--out FILE]

Models: `mini`, the bundled one, on held-out text, with features active there and next tokens as
targets; `gated`, the same weights with a random gate bias per head; `small`, a random GPT-2 of the
small size with perturbed LayerNorms and biases, on random tokens, with random directions.

For each pair, in float32 and float64: the component table against the pre-activation; the sum of
the last arrivals against it; the frozen map from a random layer in each treatment of MLPs, split
over the dictionary where there is one; the path-patched zero ablation of random heads at a random
key against their direct attribution.  `relative` compares an error with |expected|, or with 1% of
the terms' summed size where they cancel (`relative_error`; for an ablation, all edges of the blocks
it is in, because its run adds them up); `strict` with |expected| alone.
"""

import argparse
import copy
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

import saekit
from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.files import write_json
from saekit.model.exact import ExactModel, Forward
from saekit.model.gating import install
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.removal import drops
from saekit.routes.attribution.arrivals import (
    Arrivals,
    arrivals_of,
    components,
    direct_edges,
    relative_error,
)
from saekit.routes.attribution.paths import frozen_maps, split_paths
from saekit.routes.target import Target, activations, feature_target, token_target
from saekit.text.sources import open_text

MODES = ("direct", "frozen", "gradient")
PER_PROMPT = 4  # targets per forward pass
BOUNDS = {"float32": 1e-4, "float64": 1e-10}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
MAX_TOKENS = 48
SMALL = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}


class Errors:
    """Largest error of each identity, and on how many comparisons."""

    def __init__(self) -> None:
        self.relative: dict[str, list[float]] = defaultdict(list)
        self.strict: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, found: float, expected: float, size: float) -> None:
        self.relative[name].append(relative_error(found, expected, size))
        self.strict[name].append(abs(found - expected) / max(abs(expected), 1e-30))

    def summary(self) -> dict[str, Any]:
        return {
            name: {
                "n": len(values),
                "largest_relative": max(values),
                "median_strict": sorted(self.strict[name])[len(values) // 2],
                "largest_strict": max(self.strict[name]),
            }
            for name, values in self.relative.items()
        }


def mini(gated: bool) -> LanguageModel:
    model = saekit.load_model("gpt2-mini")
    if not gated:
        return model
    hf = copy.deepcopy(model.hf)
    generator = torch.Generator().manual_seed(0)
    hf.config.attention = "gated"
    hf.config.gate_bias = torch.randn(model.n_layers, model.n_heads, generator=generator).tolist()
    install(hf)
    return LanguageModel("gpt2-mini, random gates", hf, model.tokenizer)


def small() -> LanguageModel:
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(**SMALL, initializer_range=0.05)).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return LanguageModel("random GPT-2 small", hf, saekit.load_model("gpt2-mini").tokenizer)


def prompts(name: str, model: LanguageModel, rng: random.Random) -> Iterator[torch.Tensor]:
    """Token ids of prompts of 3 to MAX_TOKENS tokens, BOS in front."""
    for document in open_text(held_out=True):
        n = rng.randint(3, MAX_TOKENS)
        if name == "small":
            ids = [rng.randrange(model.d_vocab) for _ in range(n)]
        else:
            ids = model.tokens(str(document))[:n]
        if len(ids) >= 3:
            yield torch.tensor([model.bos, *ids])


def targets(
    exact: ExactModel, clean: Forward, dictionaries: Any, rng: random.Random, n: int
) -> list[Target]:
    """A next token's logit, and features active at random places (or random directions)."""
    last = len(clean.ids) - 1
    found = [token_target(exact, clean, int(clean.logits[last].argmax()), last, "token")]
    while len(found) < n:
        layer, query = rng.randint(1, exact.n_layers), rng.randint(1, last)
        if dictionaries is None:
            generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
            direction = torch.randn(exact.d_model, generator=generator).to(exact.W_E)
            found.append(Target("direction", "feature", layer, query, direction, 0.5, feature=0))
            continue
        active = activations(dictionaries[layer], clean.resid[layer, query]).nonzero().flatten()
        if len(active):
            feature = int(active[rng.randrange(len(active))])
            found.append(feature_target(exact, dictionaries[layer], feature, query))
    return found


def check(
    exact: ExactModel, clean: Forward, some: list[Target], dictionaries: Any, rng: random.Random,
    errors: Errors,
) -> None:  # fmt: skip
    """All identities of some targets of one prompt."""
    for target, found in zip(some, arrivals_of(exact, clean, some), strict=True):
        p = target.value(clean)
        values = [value for _, value in components(exact, clean, target)]
        errors.add("components", sum(values), p, sum(map(abs, values)))
        _arrivals(errors, found, p)
        for mode in MODES:
            layer = rng.randint(0, target.layer)
            (paths,) = frozen_maps(exact, clean, [target], layer, mode)
            if dictionaries is None:
                linear = (clean.resid[layer] * paths.J).sum(-1)
                size = float(linear.abs().sum()) + abs(paths.constant)
                errors.add(f"paths {mode}", paths.total(clean), p, size)
            else:
                split = split_paths(clean, paths, dictionaries[layer])
                size = float(split.features.abs().sum() + split.error.abs().sum())
                errors.add(f"paths {mode}", split.total, p, size + abs(split.constant))
        key = rng.randint(0, target.query - 1)
        everything = [(m, h) for m in range(target.layer) for h in range(exact.n_heads)]
        heads = rng.sample(everything, rng.randint(1, min(8, len(everything))))
        edges = direct_edges(exact, clean, target)
        parts = [float(edges[m, h, key]) for m, h in heads]
        (drop,) = drops(exact, clean, target, [heads], [key], direct=True)
        if target.token is not None:  # measured with the final LayerNorm live: not linear
            continue
        size = float(edges[sorted({m for m, _ in heads})].abs().sum())  # what these blocks write
        errors.add("path-patched ablation", drop, sum(parts), size)


def _arrivals(errors: Errors, found: Arrivals, p: float) -> None:
    errors.add("last arrivals", found.total, p, float(found.edges.abs().sum()) + abs(found.rest))


def measure(name: str, pairs: int) -> dict[str, Any]:
    """Both precisions on one model; they see the same prompts."""
    model = small() if name == "small" else mini(gated=name == "gated")
    folder = bundled(DEFAULT_DICTIONARIES)
    dictionaries = None if name == "small" else saekit.DictionarySet.load(folder)
    result: dict[str, Any] = {"model": model.id, "pairs": pairs}
    for precision, dtype in DTYPES.items():
        rng, errors, began = random.Random(0), Errors(), time.perf_counter()
        exact = ExactModel(model, dtype)
        stream = prompts(name, model, rng)
        open_edges = causal_edges = 0
        with tqdm(total=pairs, desc=f"{name} {precision}", unit=" pairs") as bar:
            while bar.n < pairs:
                clean = exact.run(next(stream))
                n = len(clean.ids)
                open_edges += int((clean.pattern > 0).sum())
                causal_edges += exact.n_layers * exact.n_heads * n * (n + 1) // 2
                some = targets(exact, clean, dictionaries, rng, min(PER_PROMPT, pairs - bar.n))
                check(exact, clean, some, dictionaries, rng, errors)
                bar.update(len(some))
        found = errors.summary()
        worst = max(row["largest_relative"] for row in found.values())
        result[precision] = {
            "identities": found,
            "bound": BOUNDS[precision],
            "holds": worst <= BOUNDS[precision],
            "open_edges": open_edges / causal_edges,
            "seconds": round(time.perf_counter() - began, 1),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--models", nargs="+", default=["mini", "gated", "small"])
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    document = {name: measure(name, args.pairs) for name in args.models}
    if args.out:
        write_json(args.out, document)
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
