"""Which heads route, how few are enough, and is it causal: opposites and two-name stories as JSON.

    python benchmarks/routes.py [--dictionaries DIR] [--prompts 200] [--random-sets 100] [--rows]

Every prompt is traced from the word that the answer depends on (the quoted word, the taker's name)
to the last position; the target is what the model is about to say.  The set is the smallest number
of heads that carries 80% of what comes from that word (N80).  Beside it stand random sets with as
many heads in the same layers, on the same edge.  Prompts are of the reporting half (see
route_prompts.py): no threshold was chosen on their word pairs or names.  Intervals are bootstrapped
over word pairs, or names.

    causal_share          drop without the set / drop without all edges into the query; n/a where
                          the one drop is no part of the other (counted in `refused`)
    random_causal_share   the same of the prompt's median random set
    drop_ratio            median drop without the set / median of the random sets' median drops
    stability             mean Jaccard of two prompts' sets, and of random sets

Prints one JSON document: the summary first, rows only with --rows.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
from route_prompts import RoutePrompt, opposite_prompts, story_prompts
from tqdm.auto import tqdm

import saekit
from saekit.bundled import DEFAULT_DICTIONARIES, SEED_PROMPT, bundled
from saekit.concepts.catalogue import Catalogue
from saekit.routes.attribution.head_set import ratio
from saekit.routes.variants.intervals import bootstrap_interval
from saekit.routes.variants.summary import row_of, summed_up

MEASURES = (
    "n80", "share_positive", "share_causal", "random_causal_share", "share_causal_of_key",
    "joint_drop", "random_median_drop", "prediction_after",
)  # fmt: skip


def rounded(values) -> list[float] | None:
    return None if values is None else [round(float(value), 4) for value in values]


def summary(circuits, rows: list[dict], groups: list[str]) -> dict:
    """Medians with intervals over groups, the ratio of drops, and the stability of the set."""
    found: dict = {"prompts": len(rows), "groups": len(set(groups))}
    for name in MEASURES:
        known = [
            (row[name], g) for row, g in zip(rows, groups, strict=True) if row[name] is not None
        ]
        values, its_groups = [v for v, _ in known], [g for _, g in known]
        found[name] = {
            "median": round(float(np.median(values)), 4) if values else None,
            "interval": rounded(bootstrap_interval(values, groups=its_groups)),
            "refused": len(rows) - len(known),
        }
    drops = np.array([[row["joint_drop"], row["random_median_drop"]] for row in rows])

    def ratio_of_medians(table: np.ndarray) -> float:
        mine, random = np.median(table, axis=0)
        return float(mine / random)

    found["drop_ratio"] = {
        "ratio": round(ratio_of_medians(drops), 3),
        "interval": rounded(bootstrap_interval(drops, ratio_of_medians, groups)),
    }
    stability = summed_up(circuits, [])
    beats = [row["beats_random"] is not None and row["beats_random"] >= 0.95 for row in rows]
    return {
        **found,
        "beats_95_percent_of_random_sets": float(np.mean(beats)),
        "largest_completeness_error": max(row["completeness_error"] for row in rows),
        "stability": {
            "jaccard": stability.jaccard,
            "interval": stability.jaccard_interval,
            "random": stability.jaccard_random,
            "heads": [[head.head, round(head.share, 3)] for head in stability.heads[:10]],
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dictionaries", type=Path, default=bundled(DEFAULT_DICTIONARIES))
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--random-sets", type=int, default=100)
    parser.add_argument("--rows", action="store_true")
    args = parser.parse_args()
    dictionaries = saekit.DictionarySet.load(args.dictionaries)
    model = saekit.load_model(dictionaries.manifest["model"])
    catalogue = Catalogue.load(args.dictionaries / "concepts.json")

    def traced(prompt: str, key: int):
        circuit = saekit.trace(
            model, dictionaries, prompt, key=key, catalogue=catalogue, spans=[],
            random_sets=args.random_sets,
        )  # fmt: skip
        drop = circuit.random_sets.median_drop
        p = circuit.target.preactivation
        row = row_of(circuit)
        row["prediction_after"] = circuit.set.prediction_after
        row["random_causal_share"] = None
        if drop is not None and row["share_causal"] is not None:  # on the same prompts as the set's
            row["random_causal_share"] = ratio(drop, circuit.all_edges_drop, p)
        return circuit, row

    behaviours: dict[str, list[RoutePrompt]] = {
        "opposites": opposite_prompts(model, "reporting", args.prompts),
        "stories": story_prompts(model, "reporting", args.prompts),
    }
    _, seed_row = traced(SEED_PROMPT, 5)
    document: dict = {"summary": {}, "seed_prompt": {name: seed_row[name] for name in MEASURES}}
    kept: dict[str, list[dict]] = {}
    for name, prompts in behaviours.items():
        start = time.perf_counter()
        both = [traced(p.text, p.position) for p in tqdm(prompts, desc=name, unit="prompt")]
        circuits, rows = [circuit for circuit, _ in both], [row for _, row in both]
        groups = [prompt.group for prompt in prompts]
        document["summary"][name] = {
            **summary(circuits, rows, groups),
            "seconds": round(time.perf_counter() - start, 1),
        }
        kept[name] = rows
    print(json.dumps({**document, **({"rows": kept} if args.rows else {})}, ensure_ascii=False))


if __name__ == "__main__":
    main()
