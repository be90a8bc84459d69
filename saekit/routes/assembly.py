"""Puts the circuit of one prompt together from attribution, ablation and dictionaries."""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from saekit.concepts.catalogue import Catalogue
from saekit.coordinates import feature_name, head_name
from saekit.model.exact import ExactModel, Forward
from saekit.model.loading import LanguageModel
from saekit.routes import circuit as parts
from saekit.routes.ablation.removal import EdgeDrops, removed
from saekit.routes.ablation.replacements import Replacement
from saekit.routes.attribution.arrivals import (
    Arrivals,
    EdgeSplit,
    arrivals,
    completeness_error,
    components,
    split_edge,
)
from saekit.routes.attribution.shares import (
    N80_SHARE,
    Head,
    positive,
    ranked_heads,
    ratio,
    share_of_drop,
    smallest_set,
)
from saekit.routes.circuit import Circuit, rounded
from saekit.routes.evidence import ablations, matches
from saekit.routes.feature_names import Namer, namer
from saekit.routes.notes import notes
from saekit.routes.target_choice import TargetChooser
from saekit.sae.storage.dictionary_set import DictionarySet

TOP_TOKENS = 5
TOP_SOURCES = 8
PATTERN_TOKENS = 64  # beyond, 144 maps would be megabytes of JSON


class CircuitBuilder:
    """One prompt and query; `at` turns positions into tensor indices."""

    def __init__(
        self,
        model: LanguageModel,
        exact: ExactModel,
        clean: Forward,
        dictionaries: DictionarySet,
        catalogue: Catalogue | None,
        position: int,
        spans: Sequence[Any] = (),
        replacements: Sequence[Replacement] = (),
        called: Namer | None = None,
    ) -> None:
        """`replacements`: further ways to remove the set, beside zero and renormalised rows;
        `called`: what to call a feature, by its concept when None."""
        self.model, self.exact, self.clean, self.spans = model, exact, clean, spans
        self.replacements = replacements
        self.called = called or namer(catalogue, None)
        self.dictionaries, self.catalogue, self.position = dictionaries, catalogue, position
        self.first = int(model.prepend_bos)  # tensor index of position 1
        self.q = self.at(position)
        self.chooser = TargetChooser(
            exact, clean, model, dictionaries, catalogue, self.q, position, spans
        )

    def at(self, position: int) -> int:
        return position - 1 + self.first

    def circuit(
        self, prompt: str, wanted: str | None, given_key: int | None, listed: int,
        n_random: int, seed: int,
    ) -> Circuit:  # fmt: skip
        """The circuit; the arguments are checked."""
        model, clean = self.model, self.clean
        target = self.chooser.choose(wanted)
        p = target.value(clean)
        found = arrivals(self.exact, clean, target)
        into = found.edges[:, :, self.first : self.q]  # from every position before the query
        key = self._strongest_key(into) if given_key is None else given_key
        at_key = into[:, :, key - 1]
        chosen = smallest_set(at_key, N80_SHARE)
        shown = [head for head, _ in ranked_heads(at_key)[:listed]]
        before = range(self.first, self.q)
        causal = EdgeDrops(self.exact, clean, target, self.at(key), {*chosen, *shown}, list(before))
        table = components(self.exact, clean, target)
        the_set = self._set(found, into, key, chosen, causal)
        splits = self._splits(found, chosen, self.at(key))
        random = causal.random(chosen, n_random, seed)
        result = Circuit(
            model=model.id,
            fingerprint=model.fingerprint,
            dictionaries=self.dictionaries.name,
            prompt=prompt,
            tokens=model.token_strings(clean.ids[self.first :].tolist()),
            prepend_bos=model.prepend_bos,
            target=parts.CircuitTarget(
                concept=target.label,
                feature=target.feature_name,
                layer=target.layer,
                position=self.position,
                preactivation=rounded(p),
                kind=target.kind,
                token=None if target.token is None else model.vocabulary[target.token],
            ),
            key=key,
            query=self.position,
            heads=[self._head(head, p, into, key, causal) for head in shown],
            set=the_set,
            n80=len(chosen),
            completeness_error=rounded(completeness_error(table, p)),
            error_node_share=rounded(error_share(splits)),
            concepts=[_concept(span) for span in self.spans],
            prediction=self._prediction(),
            notes=[],
            shown=self._set(found, into, key, shown, causal),
            n80_all_keys=len(smallest_set(into.clamp(min=0).sum(-1), N80_SHARE)),
            random_sets=_random_sets(causal, chosen, random),
            all_edges_drop=rounded(causal.all_edges),
            key_edges_drop=rounded(causal.key_edges),
            arrivals=self._arrivals(found, into, p),
            sources=self._sources(splits),
            components=[parts.Component(name, rounded(value)) for name, value in table],
            patterns=self._patterns(),
            ablations=ablations(
                self.exact, clean, target, self.at(key), chosen, list(before), self.replacements,
                (causal, random), n_random, seed,
            ),
            matches=matches(
                self.exact, clean, self.dictionaries, self.called, chosen, self.at(key), self.q,
                self.first,
            ),
        )  # fmt: skip
        result.notes = notes(result, given_key is None, self.chooser.spoken)
        return result

    def _strongest_key(self, into: Tensor) -> int:
        """The position with the largest net contribution; the largest positive one if none is."""
        net = into.sum((0, 1))
        best = net if bool((net > 0).any()) else into.clamp(min=0).sum((0, 1))
        return int(best.argmax()) + 1

    def _head(
        self, head: Head, p: float, into: Tensor, key: int, causal: EdgeDrops
    ) -> parts.CircuitHead:
        m, h = head
        value = float(into[m, h, key - 1])
        return parts.CircuitHead(
            head=head_name(m, h),
            layer=m,
            index=h,
            attention=rounded(float(self.clean.pattern[m, h, self.q, self.at(key)])),
            contribution=rounded(value),
            share=rounded(ratio(max(value, 0.0), positive(into), p)),
            causal=rounded(causal.single[head]),
            share_of_key=rounded(ratio(max(value, 0.0), positive(into[:, :, key - 1]), p)),
        )

    def _set(
        self, found: Arrivals, into: Tensor, key: int, heads: list[Head], causal: EdgeDrops
    ) -> parts.CircuitSet:
        p = found.target.value(self.clean)
        mine = torch.stack([into[m, h, key - 1] for m, h in heads]) if heads else into.new_zeros(0)
        joint = causal.joint(heads)
        return parts.CircuitSet(
            heads=[head_name(m, h) for m, h in heads],
            share_positive=rounded(ratio(positive(mine), positive(into), p)),
            share_signed=rounded(ratio(float(mine.sum()), float(into.sum()), p)),
            share_causal=rounded(share_of_drop(joint, causal.all_edges, p)),
            joint_drop=rounded(joint),
            sum_of_single_drops=rounded(sum(causal.single[head] for head in heads)),
            share_of_key=rounded(ratio(positive(mine), positive(into[:, :, key - 1]), p)),
            share_of_preactivation=rounded(ratio(float(mine.sum()), p - found.target.constant, p)),
            share_causal_of_key=rounded(share_of_drop(joint, causal.key_edges, p)),
            prediction_after=rounded(self._probability_without(heads, key)),
            shapley=_numbers(causal.shapley(heads)),
        )

    def _probability_without(self, heads: list[Head], key: int) -> float:
        """Probability of the top predicted token after the edges' removal."""
        token = int(self.clean.logits[self.q].argmax())
        resid = removed(self.exact, self.clean, self.q, [heads], [self.at(key)])
        return float(self.exact.unembed(resid)[0][0].softmax(-1)[token])

    def _prediction(self) -> list[parts.Prediction]:
        top = self.clean.logits[self.q].softmax(-1).topk(min(TOP_TOKENS, self.model.d_vocab))
        return [
            parts.Prediction(self.model.vocabulary[token], rounded(float(value)))
            for value, token in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]

    def _arrivals(self, found: Arrivals, into: Tensor, p: float) -> list[parts.Arrival]:
        rows = []
        for index in range(self.q):
            edges = found.edges[:, :, index]
            place = index + 1 - self.first  # 0 is BOS
            plus, net = positive(edges), float(edges.sum())
            share = None if place == 0 else rounded(ratio(plus, positive(into), p))
            minus = -positive(-edges)
            rows.append(parts.Arrival(place, rounded(plus), rounded(minus), rounded(net), share))
        return rows

    def _splits(self, found: Arrivals, heads: list[Head], key: int) -> dict[Head, EdgeSplit]:
        """The set's edges split over features, where the head's input layer has a dictionary."""
        return {
            head: split_edge(self.exact, self.clean, found, self.dictionaries[head[0]], head, key)
            for head in heads
            if head[0] in self.dictionaries.layers
        }

    def _sources(self, splits: dict[Head, EdgeSplit]) -> list[parts.Source]:
        """The features whose content the heads carry, strongest first, heads added up."""
        totals: dict[tuple[int, int], float] = {}
        for (layer, _), split in splits.items():
            for feature, value in split.features.items():
                totals[layer, feature] = totals.get((layer, feature), 0.0) + value
        whole = sum(split.total for split in splits.values())
        strongest = sorted(totals.items(), key=lambda item: -abs(item[1]))[:TOP_SOURCES]
        return [
            parts.Source(
                feature=feature_name(layer, feature),
                contribution=rounded(value),
                share=rounded(value / whole) if whole else None,
                name=self.called(layer, feature),
            )
            for (layer, feature), value in strongest
        ]

    def _patterns(self) -> list[list[list[list[float]]]] | None:
        if len(self.clean.ids) - self.first > PATTERN_TOKENS:
            return None
        maps = self.clean.pattern[:, :, self.first :, self.first :].double().cpu().numpy().round(3)
        return maps.tolist()


def _numbers(values: list[float] | None) -> list[float] | None:
    return None if values is None else [rounded(value) for value in values]


def error_share(splits: dict[Head, EdgeSplit]) -> float | None:
    """Sum over the heads of |what each reads from its dictionary's error| / of |what it carries|.

    Errors of different heads do not cancel.  1 where it is more.
    """
    whole = sum(abs(split.total) for split in splits.values())
    if whole == 0:
        return None
    return min(sum(abs(split.error) for split in splits.values()) / whole, 1.0)


def _concept(span: Any) -> parts.CircuitConcept:
    return parts.CircuitConcept(
        name=span.name,
        kind=span.kind,
        position=span.position,
        span=[span.first, span.last],
        features=list(span.features),
        evidence=span.evidence,
    )


def _random_sets(causal: EdgeDrops, heads: list[Head], found: list[float]) -> parts.RandomSets:
    if not found:
        return parts.RandomSets(0, len(heads), None, None, None)
    mine = causal.joint(heads)
    return parts.RandomSets(
        n=len(found),
        size=len(heads),
        median_drop=rounded(statistics.median(found)),
        p95_drop=rounded(found[min(len(found) - 1, int(0.95 * len(found)))]),
        share_below=rounded(sum(drop < mine for drop in found) / len(found)),
    )
