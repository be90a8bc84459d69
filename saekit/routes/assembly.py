"""The circuit of one prompt, from what was attributed and what was ablated."""

import statistics
from typing import Any

from jaxtyping import Float
from torch import Tensor

from saekit.coordinates import feature_name, head_name
from saekit.routes import circuit_parts as parts
from saekit.routes.ablation.edge_drops import EdgeDrops, SetDrops
from saekit.routes.attribution.head_set import ArrivalRow, Attribution, HeadMatch, HeadSet
from saekit.routes.attribution.qk import Part
from saekit.routes.circuit import Circuit, rounded
from saekit.routes.notes import notes
from saekit.routes.prompt_run import Namer, PromptRun

TOP_TOKENS = 5
TOP_SOURCES = 8
PATTERN_TOKENS = 64  # beyond, 144 maps would be megabytes of JSON


def assembled(
    run: PromptRun, found: Attribution, removed: list[EdgeDrops], automatic_key: bool
) -> Circuit:
    """The circuit.

    Args:
        removed: the set removed in every way, zero ablation first.
        automatic_key: whether the key was chosen by what arrives from it.
    """
    model, q, zero = run.model, found.target.query, removed[0]
    listed = found.listed.heads
    shown = zero.chosen if listed == found.chosen.heads else zero.of(listed, shapley=True)
    circuit = Circuit(
        model=model.id,
        fingerprint=model.fingerprint,
        dictionaries=run.dictionaries.name,
        prompt=run.prompt,
        tokens=run.tokens,
        prepend_bos=model.prepend_bos,
        target=_target(run, found),
        key=found.key,
        query=run.positions[q],
        heads=[_head(run, found, zero, one) for one in found.each],
        set=_set(found.chosen, zero.chosen),
        n80=len(found.chosen.heads),
        completeness_error=rounded(found.completeness_error),
        error_node_share=rounded(found.error_share),
        concepts=[_concept(span) for span in run.spans],
        prediction=predictions(run, run.clean.logits[q]),
        notes=[],
        shown=_set(found.listed, shown),
        n80_all_keys=found.n80_all_keys,
        random_sets=_random_sets(zero, len(found.chosen.heads)),
        all_edges_drop=rounded(zero.all_edges),
        key_edges_drop=rounded(zero.key_edges),
        arrivals=[_arrival(row) for row in found.rows],
        sources=_sources(run.called, found),
        components=[parts.Component(name, rounded(value)) for name, value in found.components],
        patterns=_patterns(run),
        ablations=[_ablation(way) for way in removed if found.chosen.heads],
        matches=[_match(run, match) for match in found.matches],
    )
    circuit.notes = notes(circuit, automatic_key, found.target.spoken)
    return circuit


def predictions(run: PromptRun, logits: Float[Tensor, " d_vocab"]) -> list[parts.Prediction]:
    """The most probable next tokens."""
    top = logits.softmax(-1).topk(min(TOP_TOKENS, len(logits)))
    return [
        parts.Prediction(run.model.vocabulary[token], rounded(float(value)))
        for value, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
    ]


def _target(run: PromptRun, found: Attribution) -> parts.CircuitTarget:
    target = found.target
    return parts.CircuitTarget(
        concept=target.label,
        feature=None if target.feature is None else feature_name(target.layer, target.feature),
        layer=target.layer,
        position=run.positions[target.query],
        preactivation=rounded(found.p),
        kind=target.kind,
        token=None if target.token is None else run.model.vocabulary[target.token],
    )


def _head(run: PromptRun, found: Attribution, zero: EdgeDrops, one: HeadSet) -> parts.CircuitHead:
    ((m, h),) = one.heads
    return parts.CircuitHead(
        head=head_name(m, h),
        layer=m,
        index=h,
        attention=rounded(float(run.clean.pattern[m, h, found.target.query, found.at])),
        contribution=rounded(one.values[0]),
        share=rounded(one.positive),
        causal=rounded(zero.single[m, h]),
        share_of_key=rounded(one.of_key),
    )


def _set(heads: HeadSet, removed: SetDrops) -> parts.CircuitSet:
    shapley = removed.shapley
    return parts.CircuitSet(
        heads=[head_name(m, h) for m, h in heads.heads],
        share_positive=rounded(heads.positive),
        share_signed=rounded(heads.signed),
        share_causal=rounded(removed.share),
        joint_drop=rounded(removed.joint),
        sum_of_single_drops=rounded(removed.singles),
        share_of_key=rounded(heads.of_key),
        share_of_preactivation=rounded(heads.of_preactivation),
        share_causal_of_key=rounded(removed.share_of_key),
        prediction_after=rounded(removed.probability),
        shapley=None if shapley is None else [rounded(value) for value in shapley],
    )


def _concept(span: Any) -> parts.CircuitConcept:
    return parts.CircuitConcept(
        name=span.name,
        kind=span.kind,
        position=span.position,
        span=[span.first, span.last],
        features=list(span.features),
        evidence=span.evidence,
    )


def _random_sets(zero: EdgeDrops, size: int) -> parts.RandomSets:
    found, joint = zero.random, zero.chosen.joint
    if not found:
        return parts.RandomSets(0, size, None, None, None)
    return parts.RandomSets(
        n=len(found),
        size=size,
        median_drop=rounded(statistics.median(found)),
        p95_drop=rounded(found[min(len(found) - 1, int(0.95 * len(found)))]),
        share_below=rounded(sum(drop < joint for drop in found) / len(found)),
    )


def _arrival(row: ArrivalRow) -> parts.Arrival:
    return parts.Arrival(
        row.position,
        rounded(row.positive),
        rounded(row.negative),
        rounded(row.net),
        rounded(row.share),
    )


def _sources(called: Namer, found: Attribution) -> list[parts.Source]:
    """The features whose content the heads carry, strongest first, heads added up."""
    totals: dict[tuple[int, int], float] = {}
    for (layer, _), split in found.splits.items():
        for feature, value in split.features.items():
            totals[layer, feature] = totals.get((layer, feature), 0.0) + value
    whole = sum(split.total for split in found.splits.values())
    strongest = sorted(totals.items(), key=lambda item: -abs(item[1]))[:TOP_SOURCES]
    return [
        parts.Source(
            feature=feature_name(*feature),
            contribution=rounded(value),
            share=rounded(value / whole) if whole else None,
            name=called(*feature),
        )
        for feature, value in strongest
    ]


def _patterns(run: PromptRun) -> list[list[list[list[float]]]] | None:
    if run.n > PATTERN_TOKENS:
        return None
    maps = run.clean.pattern[:, :, run.first :, run.first :]
    return maps.double().cpu().numpy().round(3).tolist()


def _ablation(way: EdgeDrops) -> parts.Ablation:
    chosen = way.chosen
    return parts.Ablation(
        name=way.instead.name,
        direct=way.direct,
        joint_drop=rounded(chosen.joint),
        sum_of_single_drops=rounded(chosen.singles),
        redundancy=rounded(chosen.joint - chosen.singles),
        share_causal=rounded(chosen.share),
        share_causal_of_key=rounded(chosen.share_of_key),
        random_median=rounded(statistics.median(way.random)) if way.random else None,
        logit_drop=rounded(chosen.logit),
        prediction_after=rounded(chosen.probability),
    )


def _match(run: PromptRun, match: HeadMatch) -> parts.Match:
    split = match.split
    layer = split.head[0]

    def name(part: Part) -> str | None:
        return run.called(layer, int(part))

    return parts.Match(
        head=head_name(*split.head),
        score=rounded(split.score),
        contrast=rounded(split.contrast),
        against=[run.positions[k] for k in split.against],
        margin=rounded(split.margin),
        in_features=rounded(match.in_features),
        with_error=rounded(match.with_error),
        key_features=[
            parts.KeyFeature(feature_name(layer, int(part)), rounded(value), name(part))
            for part, value in match.keys
        ],
        pairs=[
            parts.MatchedPair(
                query=feature_name(layer, int(pair.query)),
                key=feature_name(layer, int(pair.key)),
                value=rounded(pair.value),
                query_name=name(pair.query),
                key_name=name(pair.key),
            )
            for pair in match.pairs
        ],
    )
