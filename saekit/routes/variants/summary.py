"""The same route on many prompts: medians, intervals, and how stable the head set is.

Key and query are positions and stay the same, so a variant must have as many tokens as the prompt
it varies; what is left out is named.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from textwrap import shorten
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from saekit.concepts.catalogue import Catalogue
from saekit.coordinates import parse_head
from saekit.errors import InputError
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.edge_drops import random_sets
from saekit.routes.circuit import Circuit, rounded
from saekit.routes.trace import trace
from saekit.routes.variants.intervals import bootstrap_interval
from saekit.routes.variants.stability import HeadCount, Measure, Variants
from saekit.sae.storage.dictionary_set import DictionarySet

SHOWN_PROMPT = 60  # characters


def trace_variants(
    model: LanguageModel,
    dictionaries: DictionarySet,
    prompts: Sequence[str],
    key: int,
    query: int,
    tokens: int,
    target: str | None = None,
    catalogue: Catalogue | None = None,
    random_sets: int = 50,
    seed: int = 0,
) -> Variants:
    """`trace` on every prompt at one key and query, summed up.

    Args:
        tokens: how many tokens every variant must have, BOS not counted.
        target: as in `trace`; by default what the model is about to say on each prompt.

    Raises:
        InputError: fewer than two prompts can be traced; the first reason is given.
    """
    circuits: list[Circuit] = []
    left_out: list[dict[str, str]] = []
    for prompt in tqdm(prompts, desc="variants", unit="prompt", leave=False):
        length = len(model.tokens(prompt))
        if length != tokens:
            reason = f"it has {length} tokens, not {tokens}"
        else:
            try:
                circuits.append(
                    trace(
                        model, dictionaries, prompt, target=target, query=query, key=key,
                        catalogue=catalogue, random_sets=random_sets, seed=seed,
                    )
                )  # fmt: skip
                continue
            except InputError as error:
                reason = str(error)
        left_out.append({"prompt": prompt, "reason": reason})
    if len(circuits) < 2:
        first = ""
        if left_out:
            text = shorten(left_out[0]["prompt"], SHOWN_PROMPT, placeholder=" ...")
            first = f' ("{text}": {left_out[0]["reason"]})'
        raise InputError(
            f"Variants need at least two prompts that can be traced; there are {len(circuits)} "
            f"of {len(prompts)}{first}."
        )
    return summed_up(circuits, left_out, seed)


def row_of(circuit: Circuit) -> dict[str, Any]:
    """The numbers of one circuit that variants are compared by."""
    chosen, random = circuit.set, circuit.random_sets
    shares = {name: v for name, v in asdict(chosen).items() if name.startswith("share_")}
    return {
        "prompt": circuit.prompt,
        "predicted": circuit.prediction[0].token,
        "probability": circuit.prediction[0].probability,
        "target": circuit.target.concept,
        "preactivation": circuit.target.preactivation,
        **shares,
        "n80": circuit.n80,
        "n80_all_keys": circuit.n80_all_keys,
        "joint_drop": chosen.joint_drop,
        "random_median_drop": random.median_drop,
        "beats_random": random.share_below,
        "error_node_share": circuit.error_node_share,
        "completeness_error": circuit.completeness_error,
        "heads": chosen.heads,
    }


def summed_up(
    circuits: Sequence[Circuit], left_out: list[dict[str, str]], seed: int = 0
) -> Variants:
    """Medians, intervals and the stability of the head set over traced prompts."""
    rows = [row_of(circuit) for circuit in circuits]
    sets = [frozenset(row["heads"]) for row in rows]
    counts = Counter(head for heads in sets for head in heads)
    told = ("prompt", "predicted", "target", "heads")
    return Variants(
        n=len(rows),
        left_out=left_out,
        key=circuits[0].key,
        query=circuits[0].query,
        measures={
            name: measured([row[name] for row in rows], seed)
            for name in rows[0]
            if name not in told
        },
        heads=[
            HeadCount(head, counts[head] / len(rows))
            for head in sorted(counts, key=lambda head: (-counts[head], parse_head(head)))
        ],
        jaccard=rounded(mean_jaccard(sets)),
        jaccard_interval=_jaccard_interval(sets, seed),
        jaccard_random=rounded(mean_jaccard(_random_sets(circuits, seed))),
        rows=rows,
    )


def measured(values: Sequence[float | None], seed: int = 0) -> Measure:
    """Median and interval of the values that are not refused."""
    known = [value for value in values if value is not None]
    interval = bootstrap_interval(known, seed=seed)
    return Measure(
        median=rounded(statistics.median(known)) if known else None,
        interval=None if interval is None else [float(f"{end:.6g}") for end in interval],
        n=len(known),
        refused=len(values) - len(known),
    )


def _jaccard(one: frozenset, two: frozenset) -> float:
    return len(one & two) / len(one | two) if one | two else 1.0


def mean_jaccard(sets: Sequence[frozenset]) -> float | None:
    """Mean over all pairs; two empty sets agree.  None for fewer than two sets."""
    found = [_jaccard(one, two) for one, two in combinations(sets, 2)]
    return sum(found) / len(found) if found else None


def _jaccard_interval(sets: Sequence[frozenset], seed: int) -> list[float] | None:
    """Prompts are drawn again; a prompt is never paired with itself."""
    if len(sets) < 3:
        return None
    table = np.array([[_jaccard(one, two) for two in sets] for one in sets])

    def mean(drawn: np.ndarray) -> float:
        places = drawn.astype(int)
        different = places[:, None] != places
        return float(table[places[:, None], places][different].mean()) if different.any() else 1.0

    interval = bootstrap_interval(range(len(sets)), mean, seed=seed)
    return None if interval is None else [float(f"{end:.6g}") for end in interval]


def _random_sets(circuits: Sequence[Circuit], seed: int) -> list[frozenset]:
    """One random set per prompt, with as many heads in each layer as its own."""
    found: list[frozenset] = []
    for place, circuit in enumerate(circuits):
        heads = [parse_head(name) for name in circuit.set.heads]
        layers = circuit.target.layer
        n_heads = sum(row.name.startswith("L0-H") for row in circuit.components)
        drawn = random_sets(heads, layers, n_heads, 1, seed * len(circuits) + place)
        found += [frozenset(some) for some in drawn]
    return found
