"""Trace the seed prompt and 50 other opposite prompts; print what held, as JSON.

    python benchmarks/opposite_traces.py [--dictionaries DIR] [--prompts 50] [--random-sets 200]

For each prompt: the completeness error, N80, the set's shares, and the share of random head sets
of the same size (same layers, same edge) whose joint ablation lowers the target less.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import saekit
from saekit.bundled import DEFAULT_DICTIONARIES, SEED_PROMPT, bundled
from saekit.concepts.catalogue import Catalogue
from saekit.text.relational import relation_words

QUANTILES = (0.05, 0.5, 0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dictionaries", type=Path, default=bundled(DEFAULT_DICTIONARIES))
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--random-sets", type=int, default=200)
    args = parser.parse_args()
    dictionaries = saekit.DictionarySet.load(args.dictionaries)
    model = saekit.load_model(dictionaries.manifest["model"])
    catalogue = Catalogue.load(args.dictionaries / "concepts.json")
    words = [word for word in relation_words()[0] if word != "large"][: args.prompts]
    prompts = [SEED_PROMPT, *(f'The opposite of "{word}" is "' for word in words)]
    rows = []
    for prompt in prompts:
        circuit = saekit.trace(
            model,
            dictionaries,
            prompt,
            key=5,
            catalogue=catalogue,
            spans=[],
            random_sets=args.random_sets,
        )
        rows.append(
            {
                "prompt": prompt,
                "predicted": circuit.prediction[0].token,
                "probability": circuit.prediction[0].probability,
                "target": circuit.target.concept,
                "feature": circuit.target.feature,
                "heads": circuit.set.heads,
                "n80": circuit.n80,
                "share_positive": circuit.set.share_positive,
                "share_causal": circuit.set.share_causal,
                "joint_drop": circuit.set.joint_drop,
                "random_median": circuit.random_sets.median_drop,
                "random_p95": circuit.random_sets.p95_drop,
                "beats_random": circuit.random_sets.share_below,
                "completeness_error": circuit.completeness_error,
            }
        )

    def quantiles(name: str) -> list[float]:
        values = [row[name] for row in rows if row[name] is not None]
        return [round(float(np.quantile(values, q)), 4) for q in QUANTILES]

    beats = [row["beats_random"] is not None and row["beats_random"] >= 0.95 for row in rows]
    summary = {
        "prompts": len(rows),
        "without_causal_share": sum(row["share_causal"] is None for row in rows),
        "largest_completeness_error": max(row["completeness_error"] for row in rows),
        "beats_95_percent_of_random_sets": float(np.mean(beats)),
        "quantiles": QUANTILES,
        **{
            name: quantiles(name)
            for name in ("n80", "share_positive", "share_causal", "joint_drop", "random_median")
        },
    }
    print(json.dumps({"summary": summary, "rows": rows}, ensure_ascii=False))


if __name__ == "__main__":
    main()
