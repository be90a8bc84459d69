"""HeadScores as the document heads.json and back, and as CSV.  No torch.

Heads are written `L9-H9`; grids are lists of layers of lists of heads; pairs are named by their
place in a list.
"""

import csv
import io
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from saekit.coordinates import Head, head_name, parse_head
from saekit.documents import json_schema
from saekit.errors import InputError
from saekit.heads.classes import HeadClass, HeadClasses
from saekit.heads.document_parts import SCHEMA_VERSION, AtlasDocument, ClassesPart, Rows
from saekit.heads.grids import DYNAMIC, Dynamic, Grid, ScoresOfHeads
from saekit.version import __version__

DIGITS = 6  # decimals of a score: one of 10,000 pairs is 0.0001


def to_document(scores: ScoresOfHeads, per_pair: bool) -> dict[str, Any]:
    """The JSON document of an atlas; see `HeadScores.to_dict`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "saekit": __version__,
        "model": scores.model,
        "fingerprint": scores.fingerprint,
        "n_layers": scores.n_layers,
        "n_heads": scores.n_heads,
        "relation": {
            "name": scores.relation, "category": scores.category, "source": scores.source,
        },
        "k": scores.k,
        "pairs": {
            "listed": scores.n_listed, "kept": scores.n_pairs, "distinct_targets": scores.n_targets,
        },
        "scores": _rows(scores.scores),
        "suppression": _rows(scores.suppression),
        "baselines": {
            "constant_head": round(scores.constant, DIGITS),
            "chance": scores.chance,
            "null": {
                "quantile": 0.95, "permutations": scores.permutations, "seed": scores.seed,
                "scores": _rows(scores.null_scores),
                "suppression": _rows(scores.null_suppression),
            },
        },
        "silent_heads": scores.silent,
        "classes": scores.classes.to_dict() if scores.classes else None,
        "dynamic": _dynamic(scores.dynamic),
        "causal": scores.causal and asdict(scores.causal),
        "salient": None if scores.salient is None else [asdict(one) for one in scores.salient],
        "per_pair": _per_pair(scores) if per_pair else None,
        "notes": scores.notes,
    }  # fmt: skip


def _per_pair(scores: ScoresOfHeads) -> dict[str, Any]:
    if scores.hits is None or scores.lowered is None:
        raise InputError("These scores hold no results per pair; compute them with --pairs.")
    return {
        "pairs": [list(pair) for pair in scores.pairs],
        "mapped": _places(scores.hits),
        "suppressed": _places(scores.lowered),
    }


def _rows(grid: Grid) -> list[list[float]]:
    return [[round(float(value), DIGITS) for value in row] for row in grid]


def _places(hits: Float[np.ndarray, "n_layers n_heads pair"]) -> dict[str, list[int]]:
    """Head -> numbers of the pairs that it hits (heads without any are left out)."""
    return {
        head_name(layer, head): np.flatnonzero(row > 0.5).tolist()
        for layer, heads in enumerate(hits)
        for head, row in enumerate(heads)
        if (row > 0.5).any()
    }


def _dynamic(dynamic: Dynamic | None) -> dict[str, Any] | None:
    if dynamic is None:
        return None
    return {
        "carriers": dynamic.carriers,
        "pairs": dynamic.n_pairs,
        "correlation": dynamic.correlation,
        **{name: _rows(grid) for name, grid in dynamic.grids().items()},
    }


def fields_of(document: AtlasDocument) -> dict[str, Any]:
    """The fields of `HeadScores` from its document; the inverse of `to_document`.

    Raises:
        ValueError: a grid has not the shape that the document gives.
    """
    shape = (document.n_layers, document.n_heads)

    def grid(rows: Rows) -> Grid:
        if {len(row) for row in rows} != {shape[1]} or len(rows) != shape[0]:
            raise ValueError(f"a score grid is not {shape[0]} x {shape[1]} values")
        return np.array(rows, dtype=np.float64)

    null, dynamic, pairs = document.baselines.null, document.dynamic, document.per_pair
    return dict(
        model=document.model,
        fingerprint=document.fingerprint,
        relation=document.relation.name,
        category=document.relation.category,
        source=document.relation.source,
        k=document.k,
        n_listed=document.pairs.listed,
        n_pairs=document.pairs.kept,
        n_targets=document.pairs.distinct_targets,
        scores=grid(document.scores),
        suppression=grid(document.suppression),
        null_scores=grid(null.scores),
        null_suppression=grid(null.suppression),
        constant=document.baselines.constant_head,
        chance=document.baselines.chance,
        permutations=null.permutations,
        seed=null.seed,
        silent=document.silent_heads,
        pairs=pairs.pairs if pairs else [],
        hits=_hits(pairs.mapped, shape, len(pairs.pairs)) if pairs else None,
        lowered=_hits(pairs.suppressed, shape, len(pairs.pairs)) if pairs else None,
        classes=_classes(document.classes),
        dynamic=dynamic
        and Dynamic(
            carriers=dynamic.carriers,
            n_pairs=dynamic.pairs,
            correlation=dynamic.correlation,
            **{name: grid(getattr(dynamic, name)) for name in DYNAMIC},
        ),
        causal=document.causal,
        salient=document.salient,
        notes=document.notes,
    )


def _hits(
    places: dict[str, list[int]], shape: tuple[int, int], n: int
) -> Float[np.ndarray, "n_layers n_heads pair"]:
    hits = np.zeros((*shape, n), dtype=np.float32)
    for name, numbers in places.items():
        hits[parse_head(name)][numbers] = 1
    return hits


def _classes(part: ClassesPart | None) -> HeadClasses | None:
    if part is None:
        return None

    def places(heads: list[str]) -> list[Head]:
        return [parse_head(head) for head in heads]

    drawn = [HeadClass(c.name, c.panel, c.mark, places(c.heads)) for c in part.drawn]
    others = {name: places(heads) for name, heads in part.others.items()}
    return HeadClasses(
        part.title, part.measured, part.source, drawn, others, part.evidence, part.baseline
    )


def to_csv(scores: ScoresOfHeads) -> str:
    """One row per head: scores beside their baselines, and classes."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    columns = [
        "head", "layer", "index", "score", "suppression", "null_score", "null_suppression",
        "constant_head", "pairs", "k", "relation", "model", "classes",
    ]  # fmt: skip
    dynamic = scores.dynamic.grids() if scores.dynamic else {}
    extra = {f"dynamic_{name}": grid for name, grid in dynamic.items()}
    writer.writerow(columns + list(extra))
    grids = [scores.scores, scores.suppression, scores.null_scores, scores.null_suppression]
    for layer in range(scores.n_layers):
        for head in range(scores.n_heads):
            values = [round(float(grid[layer, head]), DIGITS) for grid in grids]
            classes = "; ".join(scores.classes.of((layer, head))) if scores.classes else ""
            writer.writerow(
                [head_name(layer, head), layer, head, *values, round(scores.constant, DIGITS),
                 scores.n_pairs, scores.k, scores.relation, scores.model, classes]
                + [round(float(grid[layer, head]), DIGITS) for grid in extra.values()]
            )  # fmt: skip
    return out.getvalue()


def schema() -> dict[str, Any]:
    """The published JSON schema of heads.json."""
    return json_schema(AtlasDocument)
