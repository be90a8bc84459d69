"""Contrast prompts: which features are active somewhere in positive prompts and in no negative one.

A prompt is one observation, a feature's value there its largest activation over the positions (BOS
left out).  Prompts are shuffled by a fixed seed; features are chosen on half of each sign and
scored on the other.  Search, scores and null are those of selection.py.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.sparse import csc_array

from saekit.activations import residuals
from saekit.concepts.catalogue import LayerScore
from saekit.concepts.definitions import MIN_PROMPTS, Definition
from saekit.concepts.selection import LayerView, score_layer
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet


def halves(
    definition: Definition, rng: np.random.Generator
) -> tuple[list[str], Bool[np.ndarray, " prompt"], int]:
    """(prompts, which are positive, size of the first half): each sign is halved, then mixed."""
    parts: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for prompts, sign in ((definition.positive, True), (definition.negative, False)):
        unique = list(dict.fromkeys(prompts))
        for place, at in enumerate(rng.permutation(len(unique))):
            parts[place % 2].append((unique[at], sign))
    mixed = [part[at] for part in parts for at in rng.permutation(len(part))]
    return [text for text, _ in mixed], np.array([sign for _, sign in mixed]), len(parts[0])


@torch.no_grad()
def largest_activations(
    model: LanguageModel, dictionaries: DictionarySet, prompts: list[str]
) -> dict[int, Float[np.ndarray, "prompt d_sae"]]:
    """Per layer, every feature's largest activation over the positions of each prompt.

    Raises:
        InputError: a prompt is empty or longer than the context.
    """
    found: dict[int, list[np.ndarray]] = {layer: [] for layer in dictionaries.layers}
    for prompt in prompts:
        ids = model.prompt(prompt)
        streams = residuals(model, ids[None], dictionaries.layers)[:, 0, int(model.prepend_bos) :]
        for layer, x in zip(dictionaries.layers, streams, strict=True):
            found[layer].append(dictionaries[layer].encode(x).float().amax(0).cpu().numpy())
    return {layer: np.stack(rows) for layer, rows in found.items()}


def score_contrast(
    model: LanguageModel, dictionaries: DictionarySet, definition: Definition, seed: int = 0
) -> list[LayerScore]:
    """The best feature set of every layer for contrast prompts, scored on the prompts held back.

    Raises:
        InputError: a prompt is empty or longer than the context.
    """
    rng = np.random.default_rng(seed)
    prompts, labels, n_first = halves(definition, rng)
    weights = np.ones(len(prompts))
    scores = []
    for layer, rows in largest_activations(model, dictionaries, prompts).items():
        view = LayerView(csc_array(rows), n_first, weights)
        scores.append(score_layer(view, layer, labels, rng, least=MIN_PROMPTS // 2))
    return scores
