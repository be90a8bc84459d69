"""From layers to spans: of a concept in the dictionaries, and of its activity on a prompt.

A span is the run of layers that holds the most layers at which something is there, with single
layers missing in between and at least 60% of its layers inside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int

from saekit.activations import residuals
from saekit.concepts.catalogue import Catalogue, Chain, LayerScore
from saekit.concepts.outputs import deviations
from saekit.coordinates import feature_name
from saekit.errors import MismatchError
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet

MIN_SHARE = 0.6
MIN_RELATIVE = 0.05  # of a feature's 99th percentile: below, it is not called active


def longest_run(
    present: Sequence[int], layers: Sequence[int], min_share: float = MIN_SHARE
) -> tuple[int, int] | None:
    """First and last layer of the run with the most present layers.

    Args:
        present: layers at which something was found.
        layers: all layers that were looked at, ascending.
        min_share: share of a run's layers that must be present.

    Returns:
        The ends (both present), the earlier and shorter run at a tie; None if nothing is present.
    """
    there = [layer in set(present) for layer in layers]
    best: tuple[int, int, int] | None = None  # (count, -length, -first)
    for first in range(len(layers)):
        if not there[first]:
            continue
        count, last_seen = 0, first
        for last in range(first, len(layers)):
            if last - last_seen > 2:  # two layers in a row are missing
                break
            if not there[last]:
                continue
            count, last_seen = count + 1, last
            length = last - first + 1
            if count / length >= min_share:
                best = max(best or (0, 0, 0), (count, -length, -first))
    if best is None:
        return None
    first = -best[2]
    return layers[first], layers[first - best[1] - 1]


@dataclass
class PromptSpan:
    """A concept that is active at a position over the layers first .. last.

    Attributes:
        position: 1-based, BOS not counted.
        features: its active features inside the span, written `8/1234`.
        evidence: per active feature its activation, the share of its 99th percentile, whether
            that reaches the concept's threshold, and the concept's F1 at that layer.
    """

    name: str
    kind: str
    position: int
    first: int
    last: int
    features: list[str]
    evidence: list[dict[str, Any]] = field(default_factory=list)


@torch.no_grad()
def prompt_spans(
    model: LanguageModel,
    dictionaries: DictionarySet,
    catalogue: Catalogue,
    prompt: str,
    resid: Float[torch.Tensor, "layer_plus_one pos d_model"] | None = None,
) -> list[PromptSpan]:
    """The layers at which each concept is active at each position of a prompt.

    Only layers at which the concept was found on held-out text take part.  A feature is active
    above 5% of its 99th percentile, and strong above the concept's threshold of that layer, with
    which F1 was measured.  The span is the longest run of layers with an active feature if at
    least half of them have a strong one, else the longest run of layers with a strong one.

    An output concept is there where the sum of its features' effects reaches the threshold.

    Args:
        resid: the residual stream of the prompt at every layer, where it is known already.

    Raises:
        InputError: the prompt is empty or longer than the context.
        MismatchError: dictionaries or catalogue of another model.
    """
    check_catalogue(model, dictionaries, catalogue)
    ids = model.prompt(prompt)
    layers = dictionaries.layers
    streams, encoded = _encoded(model, dictionaries, ids, resid)
    sigma = {layer: deviations(model, x).tolist() for layer, x in zip(layers, streams, strict=True)}
    spans = []
    for concept in catalogue.concepts:
        for index in range(int(model.prepend_bos), len(ids)):
            active = {
                score.layer: rows
                for score in concept.layers
                if score.found
                and score.layer in encoded
                and (rows := _active(score, encoded[score.layer][index], sigma[score.layer][index]))
            }
            run = _run(active, layers)
            if run is None:
                continue
            evidence = [
                row for layer, rows in active.items() if run[0] <= layer <= run[1] for row in rows
            ]
            position = index + (not model.prepend_bos)
            spans.append(
                PromptSpan(
                    concept.name, concept.kind, position, *run,
                    [row["feature"] for row in evidence], evidence,
                )
            )  # fmt: skip
    return sorted(spans, key=lambda span: (span.position, span.first, span.name))


def check_catalogue(
    model: LanguageModel, dictionaries: DictionarySet, catalogue: Catalogue
) -> None:
    """Refuse dictionaries of another model, and concepts of another model or dictionary set.

    Raises:
        MismatchError: with both fingerprints, or with a feature that the dictionaries do not have.
    """
    layers = dictionaries.layers
    dictionaries.check_model(model)
    model.check_made_with("The concepts belong", catalogue.model, catalogue.fingerprint)
    for concept in catalogue.concepts:
        for layer, feature in (
            *((score.layer, f) for score in concept.layers for f in score.features),
            *(place for chain in concept.chains for place in chain.places),
        ):
            if layer in layers and feature >= dictionaries[layer].d_sae:
                raise MismatchError(
                    f'The concept "{concept.name}" has feature {feature_name(layer, feature)}, but '
                    f"the dictionary of layer {layer} has {dictionaries[layer].d_sae} features: "
                    "find the concepts of these dictionaries with saekit concepts --find."
                )


def _encoded(
    model: LanguageModel,
    dictionaries: DictionarySet,
    ids: Int[torch.Tensor, " pos"],
    resid: Float[torch.Tensor, "layer_plus_one pos d_model"] | None = None,
) -> tuple[Float[torch.Tensor, "layer pos d_model"], dict[int, Float[torch.Tensor, "pos d_sae"]]]:
    """The streams of all layers of a dictionary set, and per layer the activations."""
    layers = dictionaries.layers
    streams = residuals(model, ids[None], layers)[:, 0] if resid is None else resid[layers].float()
    pairs = zip(layers, streams, strict=True)
    return streams, {layer: dictionaries[layer].encode(x).float().cpu() for layer, x in pairs}


@dataclass
class ChainSpan:
    """One chain at one position of a prompt.

    Attributes:
        name: of the concept it belongs to.
        position: 1-based, BOS not counted.
        first, last: layers of the span.
        features: members active in the span, written `8/1234`.
        dictionary_span: first and last layer of the whole chain.
    """

    name: str
    position: int
    first: int
    last: int
    features: list[str]
    dictionary_span: tuple[int, int]


@torch.no_grad()
def chain_spans(
    model: LanguageModel, dictionaries: DictionarySet, catalogue: Catalogue, prompt: str
) -> list[ChainSpan]:
    """The layers at which each chain of a concept is active, at each position of a prompt.

    A member is active above 5% of its 99th percentile; the span is the longest run of layers with
    an active member, one layer missing at a time, at least 60% of the run's layers inside.

    Raises:
        InputError: the prompt is empty or longer than the context.
        MismatchError: dictionaries or catalogue of another model.
    """
    check_catalogue(model, dictionaries, catalogue)
    ids = model.prompt(prompt)
    _, encoded = _encoded(model, dictionaries, ids)
    spans = []
    for concept in catalogue.concepts:
        for chain in concept.chains:
            for index in range(int(model.prepend_bos), len(ids)):
                active = _active_members(chain, encoded, index)
                run = longest_run(list(active), dictionaries.layers)
                if run is not None:
                    inside = [n for layer, n in active.items() if run[0] <= layer <= run[1]]
                    position = index + (not model.prepend_bos)
                    spans.append(ChainSpan(concept.name, position, *run, inside, chain.span))
    return sorted(spans, key=lambda span: (span.position, span.name, span.first, span.features))


def _active_members(
    chain: Chain, encoded: Mapping[int, Float[torch.Tensor, "pos d_sae"]], index: int
) -> dict[int, str]:
    """Per layer, the member of a chain that is active at one position."""
    active = {}
    for (layer, feature), name, p99 in zip(chain.places, chain.features, chain.p99, strict=True):
        value = float(encoded[layer][index, feature]) if layer in encoded else 0.0
        if value > 0 and value >= MIN_RELATIVE * p99:
            active[layer] = name
    return active


def _active(
    score: LayerScore, encoded: Float[torch.Tensor, " d_sae"], deviation: float
) -> list[dict[str, Any]]:
    """The active features of a concept at one layer and position."""
    rows = []
    values = encoded[score.features].tolist()
    strong = score.strength(values, deviation) >= score.threshold
    if score.weights and not strong:  # parts of a sum that is too small are not the concept
        return rows
    for feature, value, p99 in zip(score.features, values, score.p99, strict=True):
        if value > 0 and value >= MIN_RELATIVE * p99:
            rows.append(
                {
                    "feature": feature_name(score.layer, feature),
                    "activation": float(f"{value:.5g}"),
                    "share_of_p99": round(value / p99, 3),
                    "strong": strong if score.weights else value >= score.threshold * p99,
                    "f1": score.f1,
                }
            )
    return rows


def _run(active: dict[int, list[dict[str, Any]]], layers: Sequence[int]) -> tuple[int, int] | None:
    """The span of one position; see `prompt_spans`."""
    strong = [layer for layer, rows in active.items() if any(row["strong"] for row in rows)]
    run = longest_run(list(active), layers)
    if run is not None:
        inside = [layer for layer in active if run[0] <= layer <= run[1]]
        if 2 * sum(layer in strong for layer in inside) >= len(inside):
            return run
    return longest_run(strong, layers)
