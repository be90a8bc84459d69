"""Does swapping a word's content, by dictionary features alone, change what the model says?

    python benchmarks/swaps.py [--dictionaries DIR] [--prompts 200]
                               [--development 60] [--rows]

Opposites: `The opposite of "large" is "` with large -> hot must give an opposite of hot.  Two-name
stories: with the taker's name swapped the model must name the new one.  Counted are prompts whose
most probable token is a right answer for the *other* word, beside three baselines at the same
layers and position: the whole stream of the other prompt (ceiling), the other prompt's dictionary
error with the features left alone, and as many random features changed by as much (null; one draw
per prompt).  Intervals are bootstrapped over word pairs, or names; where all prompts agree they are
exact binomial ones, a word pair or name counted once.

The halves share no word pair and no name.  The development half is printed for all sets of layers
that were tried and for the n strongest features; the default (lower half of the layers, all
differing features) is what the reporting half is run with, and, for information, every layer alone.
Prints one JSON document: the summary first, rows only with --rows.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from route_prompts import RoutePrompt, opposite_prompts, story_prompts
from scipy.stats import binomtest
from tqdm.auto import tqdm

import saekit
from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.model.exact import ExactModel
from saekit.routes.intervention.changes import Change, Resolver, swapped_layers
from saekit.routes.intervention.holds import (
    Clamp,
    live,
    merged,
    with_features_held,
    with_other_stream,
    with_random_writes,
)
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import activations, in_the_stream
from saekit.routes.variants.intervals import bootstrap_interval

BEHAVIOURS = {"opposites": opposite_prompts, "stories": story_prompts}
WAYS = ("features", "whole_stream", "error_only", "random_features")
STRONGEST = (1, 2, 4, 8, 16)
TRIED = ((0,), (0, 1), (0, 1, 2, 3), tuple(range(6)), tuple(range(9)), (3, 4, 5), (6, 7, 8))


class Swapper:
    """Swaps one prompt's word at given layers in every way; answers by the next token's id."""

    def __init__(self, model, dictionaries) -> None:
        self.model, self.dictionaries = model, dictionaries
        self.exact = ExactModel(model)

    def open(self, prompt: RoutePrompt):
        run = PromptRun.of(self.model, self.dictionaries, prompt.text)
        return run.clean, run.index(run.n), Resolver(run, run.n)

    def says(self, stream) -> int:
        return int(self.exact.unembed(stream)[0].argmax())

    def strongest(self, clean, clamp: Clamp, n: int | None) -> Clamp:
        """The n features whose change writes most."""
        if n is None:
            return clamp
        dictionary = self.dictionaries[clamp.layer]
        now = activations(dictionary, clean.resid[clamp.layer, clamp.position])[clamp.features]
        written = (clamp.values - now).abs() * dictionary.W_dec[clamp.features].norm(dim=1)
        best = written.topk(min(n, len(written))).indices
        return Clamp(clamp.layer, clamp.position, clamp.features[best], clamp.values[best])

    def with_other_error(self, clean, other, places, query: int):
        """What a swap leaves out, alone: the features stay, the error is the other's."""
        first = min(position for _, position in places)

        def error(layer: int, x):
            dictionary = in_the_stream(self.dictionaries[layer])
            return x - dictionary.decode(activations(dictionary, x), x).to(x)

        def edit(layer: int, x) -> None:
            for at, position in places:
                if at == layer:
                    here = x[0, position - first]
                    here += error(layer, other.resid[layer, position]) - error(layer, here)

        return live(self.exact, clean, query, places, edit)[0]

    def swap(self, prompt: RoutePrompt, layers, ways, seed: int, n: int | None = None) -> dict:
        """Token said in each way, before and by the other prompt; number of features held."""
        clean, query, resolver = self.open(prompt)
        change = Change("", prompt.word, prompt.position, word=prompt.other_word)
        found = resolver.resolve(change, layers)
        clamps = merged(self.strongest(clean, clamp, n) for clamp in found.clamps)
        after, written = with_features_held(self.exact, clean, self.dictionaries, clamps, query)
        said = {
            "before": self.says(clean.resid[-1, query]),
            "other": self.says(found.other.resid[-1, query]),
            "features": self.says(after[-1]),
        }
        others = (self.exact, clean, found.other)
        if "whole_stream" in ways:
            said["whole_stream"] = self.says(with_other_stream(*others, clamps, query)[-1])
        if "error_only" in ways:
            stream = self.with_other_error(clean, found.other, list(clamps), query)
            said["error_only"] = self.says(stream[-1])
        if "random_features" in ways:
            streams = with_random_writes(
                self.exact, clean, self.dictionaries, written, query, 1, seed
            )
            said["random_features"] = self.says(streams[0, -1])
        held = sum(len(clamp.features) for clamp in clamps.values()) / len(clamps)
        return {"said": said, "features_per_layer": held}


def share(rows: list[dict], prompts: list[RoutePrompt], way: str) -> dict:
    """Share of prompts where the other word's answer is said, with its interval."""
    hits = [row["said"][way] in p.other_answers for row, p in zip(rows, prompts, strict=True)]
    groups = [prompt.group for prompt in prompts]
    if len(set(hits)) == 1:  # every resample is the same: exact binomial, one draw per group
        n = len(set(groups))
        interval = binomtest(n * hits[0], n).proportion_ci(0.95, "exact")
    else:
        interval = bootstrap_interval(hits, np.mean, groups)
    return {"share": round(float(np.mean(hits)), 4), "interval": [round(x, 4) for x in interval]}


def run(swapper: Swapper, prompts, layers, ways, n: int | None = None, label: str = "") -> dict:
    layers = [layer for layer in layers if layer in swapper.dictionaries.layers]
    rows = [
        swapper.swap(prompt, layers, ways, seed, n)
        for seed, prompt in enumerate(tqdm(prompts, desc=label, leave=False))
    ]
    return {
        "layers": layers,
        "features_per_layer": round(float(np.median([r["features_per_layer"] for r in rows])), 1),
        **{way: share(rows, prompts, way) for way in ways},
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dictionaries", type=Path, default=bundled(DEFAULT_DICTIONARIES))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--development", type=int, default=60, help="prompts of that half")
    parser.add_argument("--rows", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    dictionaries = saekit.DictionarySet.load(args.dictionaries)
    model = saekit.load_model(dictionaries.manifest["model"])
    swapper = Swapper(model, dictionaries)
    default = swapped_layers(model.n_layers, dictionaries)
    document: dict = {"summary": {}, "development": {}, "each_layer": {}}
    rows: dict = {}
    for name, make in BEHAVIOURS.items():
        prompts = make(model, "development", args.development)
        tried = [
            run(swapper, prompts, layers, WAYS, label=f"{name} {layers[0]}-{layers[-1]}")
            for layers in TRIED
        ]
        few = [run(swapper, prompts, default, ("features",), n, f"{name} {n}") for n in STRONGEST]
        document["development"][name] = {
            "layers": [{k: v for k, v in one.items() if k != "rows"} for one in tried],
            "strongest": [
                {"n": n, **one["features"]} for n, one in zip(STRONGEST, few, strict=True)
            ],
        }
        prompts = make(model, "reporting", args.prompts)
        found = run(swapper, prompts, default, WAYS, label=f"{name} reporting")
        rows[name] = [
            {"prompt": p.text, "to": p.other_word, **{
                way: model.vocabulary[token] for way, token in row["said"].items()
            }}
            for p, row in zip(prompts, found.pop("rows"), strict=True)
        ]  # fmt: skip
        right = [row["before"] in {model.vocabulary[t] for t in p.answers}
                 for row, p in zip(rows[name], prompts, strict=True)]  # fmt: skip
        document["summary"][name] = {
            "prompts": len(prompts),
            "groups": len({prompt.group for prompt in prompts}),
            "right_before": float(np.mean(right)),
            **found,
        }
        document["each_layer"][name] = [
            {"layer": layer, **one["features"], "whole_stream": one["whole_stream"]["share"]}
            for layer in dictionaries.layers[:-1]
            for one in [run(swapper, prompts, [layer], WAYS[:2], label=f"{name} layer {layer}")]
        ]
    print(json.dumps({**document, **({"rows": rows} if args.rows else {})}, ensure_ascii=False))


if __name__ == "__main__":
    main()
