"""Circuits and their documents for the tests of figure, report and viewer.  Invented numbers."""

import json
import random
from typing import Any

from saekit.routes.circuit import Circuit

SEED_TOKENS = ["The", " opposite", " of", ' "', "large", '"', " is", ' "']
CHOSEN = [(11, 7), (10, 1), (9, 7), (9, 1), (8, 6)]


def pattern(n: int, seed: int, strong: tuple[int, int] | None = None) -> list[list[float]]:
    """A causal map [q, k]; the cell `strong` (from 0) is the largest of its row."""
    rng = random.Random(seed)
    rows = [[round(0.5 * rng.random() ** 3, 3) * (key <= q) for key in range(n)] for q in range(n)]
    if strong:
        rows[strong[0]][strong[1]] = 0.9
    return rows


def head_set(heads: list[str], **numbers: float | None) -> dict[str, Any]:
    named = {
        "share_positive": 0.786, "share_signed": 1.03, "share_causal": 0.642, "joint_drop": 3.217,
        "sum_of_single_drops": 2.41, "share_of_key": 0.81, "share_of_preactivation": 0.44,
        "share_causal_of_key": 0.7, "prediction_after": 0.12, "shapley": None,
    }  # fmt: skip
    return {"heads": heads, **named, **numbers}


def document(
    tokens: list[str] | None = None,
    chosen: list[tuple[int, int]] | None = None,
    n_layers: int = 12,
    n_heads: int = 12,
    maps: bool = True,
    concepts: bool = True,
) -> dict[str, Any]:
    """The document of the seed prompt, or of other tokens, heads and sizes."""
    tokens = SEED_TOKENS if tokens is None else tokens
    chosen = CHOSEN if chosen is None else chosen
    n = len(tokens)
    query, key = n, max(1, n - 3)
    patterns = [
        [
            pattern(
                n, 100 * layer + head, (query - 1, key - 1) if (layer, head) in chosen else None
            )
            for head in range(n_heads)
        ]
        for layer in range(n_layers)
    ]
    heads = [
        {
            "head": f"L{layer}-H{head}", "layer": layer, "index": head, "attention": 0.9,
            "contribution": round(1.5 / (i + 1), 3), "share": round(0.31 / (i + 1), 4),
            "causal": round(0.9 / (i + 1), 4), "share_of_key": 0.2,
        }
        for i, (layer, head) in enumerate(chosen)
    ]  # fmt: skip
    names = [head["head"] for head in heads]
    found = [("opposite", "input", 2, [0, 1]), ("large", "input", 5, [0, 3]),
             ("brackets", "class", 8, [0, 10]), ("small", "output", 8, [12, 12])]  # fmt: skip
    values = {
        "schema_version": 1,
        "model": "gpt2-mini",
        "fingerprint": "ab" * 32,
        "dictionaries": "dictionaries/gpt2-mini",
        "prompt": "".join(tokens),
        "tokens": tokens,
        "prepend_bos": True,
        "target": {"concept": "small", "feature": "12/345", "layer": 12, "position": query,
                   "preactivation": 6.413, "kind": "concept", "token": None},
        "key": key,
        "query": query,
        "heads": heads,
        "set": head_set([*names, "L7-H2"], share_positive=0.834, joint_drop=3.61),
        "n80": len(names) + 1,
        "completeness_error": 2.3e-7,
        "error_node_share": 0.173,
        "concepts": [
            {"name": name, "kind": kind, "position": position, "span": span,
             "features": [f"{span[0]}/12"], "evidence": {"f1": 0.97}}
            for name, kind, position, span in found if concepts and position <= n
        ],
        "prediction": [{"token": "small", "probability": 0.831},
                       {"token": " <b>&", "probability": 0.0042}],
        "notes": ["One prompt is one anecdote."],
        "shown": head_set(names),
        "n80_all_keys": 9,
        "random_sets": {"n": 200, "size": len(names) + 1, "median_drop": 0.0213,
                        "p95_drop": 0.312, "share_below": 0.995},
        "all_edges_drop": 5.01,
        "key_edges_drop": 4.2,
        "arrivals": [{"position": 5, "positive": 3.1, "negative": -0.2, "net": 2.9, "share": 0.9}],
        "sources": [{"feature": "3/1", "contribution": 0.71, "share": 0.4, "name": "large"}],
        "components": [{"name": "embedding", "value": 0.12}, {"name": "heads", "value": 6.2}],
        "patterns": patterns if maps else None,
        "ablations": [{"name": "zero", "direct": True, "joint_drop": 2.1,
                       "sum_of_single_drops": 2.1, "redundancy": 0.0, "share_causal": 0.5,
                       "share_causal_of_key": None, "random_median": 0.02, "logit_drop": 1.3,
                       "prediction_after": 0.4}],
        "matches": [{"head": "L9-H7", "score": 4.2, "contrast": 3.1, "against": [1, 2],
                     "margin": None, "in_features": 2.9, "with_error": 0.1,
                     "key_features": [{"feature": "9/12", "value": 1.1, "name": "large"}],
                     "pairs": [{"query": "9/3", "key": "9/12", "value": 0.8, "query_name": None,
                                "key_name": "large"}]}],
    }  # fmt: skip
    return json.loads(json.dumps(values))  # exactly what a reader of the file gets


def circuit(*args: Any, **kwargs: Any) -> Circuit:
    """The same as a reader of the file has it."""
    return Circuit.from_dict(document(*args, **kwargs))
