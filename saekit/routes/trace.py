"""`trace`: from a prompt to its Circuit.

1. The prompt, run once with every value kept (prompt_run.py), and what is explained (target.py).
2. Last-arrival contribution of every edge into the query (arrivals.py).  The set is the
   smallest number of heads whose edges key -> query reach 80% of this key's positive
   contributions (N80, head_set.py).  Its positive share, the headline number, is relative to the
   positive contributions of all heads from *all* positions before the query.
3. What the heads read at the key, in dictionary features, and what the dictionaries miss; why the
   strongest heads attend to the key: the features that match (qk.py).
4. The set's edges are removed together, one by one, and compared with random head sets on the same
   edge (edge_drops.py), in several ways (replacements.py); exact Shapley values of up to 8 heads.
5. The numbers put together (assembly.py), with what must be said beside them (notes.py).

BOS (position 0) is no position: it is no key, counts in no share, and is listed in `arrivals`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from saekit.concepts.catalogue import Catalogue
from saekit.errors import InputError
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.edge_drops import ablations
from saekit.routes.ablation.head_means import HeadMeans
from saekit.routes.ablation.replacements import Replacement, mean_values, resampled
from saekit.routes.assembly import assembled
from saekit.routes.attribution.head_set import Attribution
from saekit.routes.circuit import Circuit
from saekit.routes.prompt_run import PromptRun
from saekit.routes.target import TargetChooser
from saekit.sae.storage.dictionary_set import DictionarySet


def trace(
    model: str | LanguageModel,
    dictionaries: str | Path | DictionarySet | None,
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
        dictionaries: None traces a token by the model's weights alone: heads, routes and removals,
            but no features and no concepts.
        target: a concept's name, a feature (`8/1234`) or a token; by default what the model is
            about to say, through the concept or feature that says it (target.py).
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
        >>> dictionaries = DictionarySet.load("dictionaries/gpt2-mini")
        >>> circuit = trace("gpt2-mini", dictionaries, 'The opposite of "large" is "')
        >>> circuit.token(circuit.key), circuit.prediction[0].token, circuit.set.heads[0]
        ('large', 'small', 'L3-H11')
    """
    if heads < 1 or random_sets < 0:
        raise InputError("heads must be at least 1 and random_sets at least 0.")
    run = PromptRun.of(model, dictionaries, prompt, catalogue, spans, dtype)
    query = run.arriving(query, key)
    chosen = TargetChooser(run, query).choose(target)
    found = Attribution(run, chosen, key, heads)
    others = _replacements(run, means, counterfactual)
    removed = ablations(run, found, others, random_sets, seed)
    return assembled(run, found, removed, automatic_key=key is None)


def _replacements(
    run: PromptRun, means: HeadMeans | str | Path | None, counterfactual: str | None
) -> list[Replacement]:
    found = []
    if means is not None:
        means = means if isinstance(means, HeadMeans) else HeadMeans.load(means)
        means.check(run.model)
        found.append(mean_values(run.exact, run.clean, means))
    if counterfactual is not None:
        other = run.exact.run(run.model.prompt(counterfactual))
        found += [resampled(run.clean, other), resampled(run.clean, other, weights=True)]
    return found
