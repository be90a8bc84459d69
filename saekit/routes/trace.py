"""`trace`: from a prompt to its Circuit.

1. Forward pass with every value kept; choice of query, target and key.
2. Last-arrival contribution of every edge into the query (arrivals.py).  The set is the
   smallest number of heads whose edges key -> query reach 80% of this key's positive
   contributions (N80).  Its positive share, the headline number, is relative to the positive
   contributions of all heads from *all* positions before the query.
3. The set's edges are removed together, one by one, and compared with random head sets on the same
   edge (removal.py), in several ways (replacements.py); exact Shapley values of up to 8 heads.
4. What the heads read at the key, in dictionary features, and what the dictionaries miss.
5. Why the strongest heads attend to the key: the features that match (qk.py).

BOS (position 0) is no position: it is no key, counts in no share, and is listed in `arrivals`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saekit.concepts.catalogue import Catalogue
from saekit.errors import InputError
from saekit.model.exact import ExactModel, Forward
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.head_means import HeadMeans
from saekit.routes.ablation.replacements import Replacement, mean_values, resampled
from saekit.routes.assembly import CircuitBuilder
from saekit.routes.circuit import Circuit
from saekit.routes.feature_names import namer, names_of
from saekit.routes.opening import opened, position_of_query, spans_of
from saekit.sae.storage.dictionary_set import DictionarySet


def trace(
    model: str | LanguageModel,
    dictionaries: str | Path | DictionarySet,
    prompt: str,
    target: str | None = None,
    query: int | None = None,
    key: int | None = None,
    heads: int = 5,
    catalogue: Catalogue | None = None,
    spans: Sequence[Any] | None = None,
    random_sets: int = 200,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    means: HeadMeans | str | Path | None = None,
    counterfactual: str | None = None,
) -> Circuit:
    """Trace one prompt: which heads carry what to the target, how much, and is it causal.

    Args:
        target: a concept's name, a feature (`8/1234`) or a token; by default what the model is
            about to say, through the concept or feature that says it (target_choice.py).
        query: position of the target, 1-based without BOS; the last by default.
        key: position the edges come from; by default the one from which most arrives.
        heads: how many heads to list.
        catalogue: `Catalogue` of concepts; names targets, spans and features.
        spans: concept spans on this prompt; computed from the catalogue when None.
        random_sets: how many random head sets the ablation is compared with.
        dtype: precision of the forward pass and the attribution.
        seed: decides the random sets.
        means: corpus means of the heads' values (`head_means`, or its file):
            the set is also removed by putting them in place of what its edges move.
        counterfactual: a prompt of the same length: the set is also made to carry what it carries
            there, values alone and with the attention weights.

    Raises:
        InputError: empty or too long prompt, position out of range, key not before query, unknown
            or inactive target.
        MismatchError: dictionaries, catalogue or means of another model.
        FormatError: the file of means cannot be read.

    Example:
        >>> circuit = trace("gpt2-mini", dictionaries, prompt)  # doctest: +SKIP
        >>> circuit.set.heads, circuit.set.share_positive  # doctest: +SKIP
    """
    model, dictionaries = opened(model, dictionaries, catalogue)
    if heads < 1 or random_sets < 0:
        raise InputError("heads must be at least 1 and random_sets at least 0.")
    ids = model.prompt(prompt)
    position, given_key = _positions(len(ids) - model.prepend_bos, query, key)
    exact = ExactModel(model, dtype)
    if spans is None:
        spans = spans_of(model, dictionaries, catalogue, prompt)
    clean = exact.run(ids)
    others = _replacements(model, exact, clean, means, counterfactual)
    called = namer(catalogue, names_of(dictionaries))
    builder = CircuitBuilder(
        model, exact, clean, dictionaries, catalogue, position, spans, others, called
    )
    return builder.circuit(prompt, target, given_key, heads, random_sets, seed)


def _replacements(
    model: LanguageModel,
    exact: ExactModel,
    clean: Forward,
    means: HeadMeans | str | Path | None,
    counterfactual: str | None,
) -> list[Replacement]:
    found = []
    if means is not None:
        means = means if isinstance(means, HeadMeans) else HeadMeans.load(means)
        means.check(model)
        found.append(mean_values(exact, clean, means))
    if counterfactual is not None:
        other = exact.run(model.prompt(counterfactual))
        found += [resampled(clean, other), resampled(clean, other, weights=True)]
    return found


def _positions(n: int, query: int | None, key: int | None) -> tuple[int, int | None]:
    """Checked 1-based positions (query, key)."""
    query = position_of_query(n, query)
    if key is not None and not 1 <= key <= n:
        raise InputError(f"Key position {key} does not exist: the prompt has positions 1 to {n}.")
    if query == 1:
        raise InputError("Nothing can arrive at position 1: choose a later query or longer prompt.")
    if key is not None and key >= query:
        raise InputError(
            f"Key position {key} is not before query position {query}: "
            "attention reads earlier positions."
        )
    return query, key
