"""Find named concepts in the dictionaries of all layers, by evidence on held-out text."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from saekit.activations import Text
from saekit.concepts.automatic import automatic_concepts
from saekit.concepts.catalogue import Catalogue, Chain, Concept, LayerScore
from saekit.concepts.contrast import score_contrast
from saekit.concepts.definitions import BUILT_IN, Definition, resolve
from saekit.concepts.matching import chains, match_layers
from saekit.concepts.observations import observe
from saekit.concepts.outputs import OutputView, clamp_concept, direct_effects, score_output_layer
from saekit.concepts.selection import LayerView, percentiles, score_layer
from saekit.concepts.spans import longest_run
from saekit.coordinates import feature_name
from saekit.errors import InputError
from saekit.features.names.name_file import FeatureNames
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet


def find_concepts(
    model: LanguageModel,
    dictionaries: DictionarySet,
    documents: Text,
    definitions: Sequence[Definition] = BUILT_IN,
    tokens: int = 150_000,
    context: int | None = None,
    text_name: str = "",
    seed: int = 0,
    named: FeatureNames | None = None,
) -> Catalogue:
    """The layers and features at which each concept is represented, with scores.

    Features are chosen on one half of the text and scored on the other (selection.py; outputs.py
    for output concepts); a layer at which no small
    feature set passes is recorded as not found, with the best that there was.  Passages with rare
    words of the definitions are read more often; weights undo this in all scores.

    Args:
        model: the model.
        dictionaries: its dictionaries, on all or some layers.
        documents: text that the dictionaries were not trained on, with the concepts in it.
        definitions: what to look for.
        tokens: positions to read; memory grows with them (see `saekit.concepts.observations`).
        context: row length; by default that of the training.
        text_name: what the text is, in words, for the catalogue.
        seed: of the nulls.
        named: names of all features (`saekit.features.names.names`), for the automatic concepts.

    Raises:
        InputError: two definitions of one name, words that are no tokens of the model, or too
            little text.
        MismatchError: dictionaries of another model.
    """
    names = [definition.name for definition in definitions]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f'There are two concepts named "{repeated[0]}"; rename one.')
    token_ids = {d.name: resolve(d, model.vocabulary) for d in definitions}
    outputs = {d.name: token_ids[d.name] for d in definitions if d.kind == "output"}
    words = sorted({text.strip().lower() for d in definitions for text in d.tokens})
    seen = observe(model, dictionaries, documents, outputs, words, tokens, context)
    labels = {
        d.name: seen.labels(d, token_ids[d.name]) for d in definitions if d.kind != "contrast"
    }

    rng = np.random.default_rng(seed)
    scores: dict[str, list[LayerScore]] = {name: [] for name in names}
    prompted = [d for d in definitions if d.kind == "contrast"]
    for definition in prompted:
        scores[definition.name] = score_contrast(model, dictionaries, definition, seed)
    for layer in dictionaries.layers:
        activations = seen.layers[layer]
        view = LayerView(activations, seen.n_first, seen.weights)
        for name in labels:
            if name in outputs:
                effects = direct_effects(model, dictionaries[layer], outputs[name])
                output = OutputView(
                    activations, seen.n_first, seen.weights, effects, seen.sigma[layer]
                )
                scores[name].append(score_output_layer(output, layer, labels[name], rng))
            else:
                scores[name].append(score_layer(view, layer, labels[name], rng))

    decoders = {layer: dictionaries[layer].W_dec for layer in dictionaries.layers}
    matching = match_layers(seen.layers, decoders, seed=seed)
    paths = chains(matching.links)
    p99 = {layer: percentiles(matrix, seen.n_first) for layer, matrix in seen.layers.items()}
    concepts = []
    for definition in definitions:
        own = scores[definition.name]
        found = [score.layer for score in own if score.found]
        clamped = [
            clamp_concept(
                model, dictionaries[score.layer], seen.layers[score.layer],
                seen.ids[seen.n_first :], score.features, outputs[definition.name], rng,
            )
            for score in own
            if score.found and definition.name in outputs
        ]  # fmt: skip
        concepts.append(
            Concept(
                name=definition.name,
                kind=definition.kind,
                tokens=[model.vocabulary[token] for token in token_ids[definition.name]],
                span=longest_run(found, dictionaries.layers),
                layers=own,
                chain=_chain(own, paths),
                chains=_chains(own, paths, p99),
                clamped=clamped,
            )
        )
    return Catalogue(
        model=model.id,
        fingerprint=model.fingerprint,
        dictionaries=dictionaries.name,
        text=text_name,
        tokens=len(seen.ids),
        concepts=concepts,
        links=matching.summary(),
        automatic=automatic_concepts(named, paths) if named else [],
    )


def _members(scores: list[LayerScore]) -> set[tuple[int, int]]:
    return {(s.layer, feature) for s in scores if s.found for feature in s.features}


def _chains(
    scores: list[LayerScore],
    paths: list[list[tuple[int, int]]],
    p99: dict[int, Float[np.ndarray, " d_sae"]],
) -> list[Chain]:
    """All chains with a member of the concept, those with most members first."""
    members = _members(scores)
    own = [path for path in paths if members & set(path)]
    return [
        Chain(
            features=[feature_name(*place) for place in path],
            p99=[float(f"{p99[layer][feature]:.6g}") for layer, feature in path],
        )
        for path in sorted(own, key=lambda path: -len(members & set(path)))
    ]


def _chain(scores: list[LayerScore], paths: list[list[tuple[int, int]]]) -> list[str]:
    """The members of the concept on the chain that has most of them; empty below two."""
    members = _members(scores)
    shared = [[place for place in path if place in members] for path in paths]
    best = max(shared, key=len, default=[])
    return [feature_name(*place) for place in best] if len(best) > 1 else []
