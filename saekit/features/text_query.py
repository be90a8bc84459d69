"""The features of a text, computed now with the model (needs torch; the index is optional)."""

from collections.abc import Iterable

import numpy as np
import torch

from saekit.activations import residuals
from saekit.errors import InputError
from saekit.features.index.index_file import IndexFile
from saekit.features.names.name_file import FeatureNames
from saekit.features.records import TextFeatures, TextHit
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet


@torch.no_grad()
def by_text(
    model: LanguageModel,
    dictionaries: DictionarySet,
    text: str,
    top: int = 5,
    layers: Iterable[int] | None = None,
    index: IndexFile | None = None,
    names: FeatureNames | None = None,
    max_density: float | None = None,
) -> TextFeatures:
    """The features that are active at every position and layer of a text.

    Args:
        model: the model the dictionaries belong to.
        dictionaries: the dictionary set.
        text: at most one context long.
        top: features per position and layer, the most active ones.
        layers: only these; None for all that have a dictionary.
        index: adds density and share of the maximum to each hit.
        names: adds the names of its features.
        max_density: leave out features that fire more often than this (needs `index`).

    Raises:
        InputError: an empty or too long text, `top` below 1, or a layer without a dictionary.
        MismatchError: model, dictionaries and index do not belong together.
    """
    dictionaries.check_model(model)
    if top < 1:
        raise InputError(f"{top} features cannot be listed; ask for at least 1.")
    if index is not None:
        index.check_dictionaries(dictionaries)
    elif max_density is not None:
        raise InputError("A density limit needs an index. Build it: saekit index DIR")
    ids = model.prompt(text)
    wanted = sorted(dictionaries.layers if layers is None else set(layers))
    parts = [dictionaries[layer] for layer in wanted]
    first = int(model.prepend_bos)
    tokens = model.token_strings(ids[first:].tolist())
    streams = residuals(model, ids[None], wanted)[:, 0, first:]

    hits: list[TextHit] = []
    for dictionary, stream in zip(parts, streams, strict=True):
        values, features = (t.cpu().numpy() for t in dictionary.encode_sparse(stream))
        density = maximum = np.full(values.shape, np.nan)
        if index is not None and dictionary.layer in index.layers:
            density = index.densities(dictionary.layer)[features]
            maximum = index.maxima(dictionary.layer)[features]
        active = values > 0
        if max_density is not None:
            active &= ~(density > max_density)
        order = np.argsort(np.where(active, -values, 0), -1, kind="stable")[:, :top]
        for place, slot in ((p, s) for p, row in enumerate(order) for s in row if active[p, s]):
            at = (place, slot)
            hits.append(
                TextHit(
                    layer=dictionary.layer,
                    feature=int(features[at]),
                    position=place + 1,
                    token=tokens[place],
                    activation=float(values[at]),
                    density=None if np.isnan(density[at]) else float(density[at]),
                    share_of_max=float(values[at] / maximum[at]) if maximum[at] > 0 else None,
                    label=_label(names, dictionary.layer, int(features[at])),
                )
            )
    hits.sort(key=lambda hit: (hit.position, hit.layer))  # stable: strength order stays
    return TextFeatures(text=text, tokens=tokens, layers=wanted, hits=hits)


def _label(names: FeatureNames | None, layer: int, feature: int) -> str | None:
    """Name and kind of a feature, if it has a name."""
    if names is None or layer not in names.layers:
        return None
    name = names.get(layer, feature)
    return name.shown if name.kind else None
