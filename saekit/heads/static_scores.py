"""The atlas: static relation and suppression scores of every head, beside their baselines.

    score_k(l, h)       = mean over pairs (a, b) of 1[ b in top-k of  L_a ]
    suppression_k(l, h) = mean over pairs (a, b) of 1[ b in top-k of -L_a ]

with L_a = s_a W_V W_O W_U of `heads/weights.py`: the definition of MAPS (Elhelo and Geva 2024,
Inferring Functionality of Attention Heads from their Parameters, arXiv 2412.11965).  Computed for
all heads from one batch of sources; ties and near ties are settled as `heads/ranking.py` says.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from saekit.coordinates import head_name
from saekit.errors import InputError
from saekit.heads.classes import ioi_classes, is_gpt2_small
from saekit.heads.pairs import MIN_PAIRS, TokenPairs, open_for_pairs, token_pairs
from saekit.heads.ranking import Side, rank_targets
from saekit.heads.relations import open_relation
from saekit.heads.scores import HeadScores
from saekit.heads.weights import head_values, head_writes
from saekit.model.exact import ExactModel
from saekit.model.loading import BUNDLED_MODELS, LanguageModel

NULL_QUANTILE = 0.95
PERMUTATIONS = 200  # the 95th percentile is then the 10th largest


def null_scores(
    top: Int[np.ndarray, "layer head pair k"],
    target: Int[np.ndarray, " pair"],
    permutations: int,
    seed: int,
) -> Float[np.ndarray, "layer head"]:
    """95th percentile of a head's score when targets are shuffled among the pairs."""
    rng = np.random.default_rng(seed)
    found = [
        (top == rng.permutation(target)[:, None]).any(-1).mean(-1) for _ in range(permutations)
    ]
    return np.quantile(np.stack(found), NULL_QUANTILE, axis=0, method="higher")


def check_k(k: int | None, default: int, d_vocab: int) -> int:
    """The k to use.

    Raises:
        InputError: it is not between 1 and d_vocab - 1.
    """
    chosen = default if k is None else k
    if not 1 <= chosen < d_vocab:
        raise InputError(f"k is {chosen}; it must be from 1 to {d_vocab - 1}.")
    return chosen


def _grid(side: Side) -> Float[np.ndarray, "layer head"]:
    return side.hits.double().mean(-1).clamp(0, 1).cpu().numpy()


def published_classes(model: LanguageModel) -> Any:
    """The published classes if this is GPT-2 small, else None (`is_gpt2_small`)."""
    config = model.hf.config
    if config.model_type != "gpt2":
        return None
    names = ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
    shape = {name: getattr(config, name) for name in names}
    start = model.decoder.W_E[0, :10].float().tolist()
    return ioi_classes() if is_gpt2_small(model.id, shape, start) else None


def score_pairs(
    model: LanguageModel,
    exact: ExactModel,
    pairs: TokenPairs,
    k: int,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> HeadScores:
    """`score_heads` on an opened model and filtered pairs."""
    device = exact.W_E.device
    source = torch.from_numpy(pairs.source).to(device)
    target = torch.from_numpy(pairs.target).to(device)
    raised, lowered = rank_targets(
        exact,
        head_values(exact, source),
        target,
        k,
        lambda layer, head, rows: head_writes(exact, source[rows], layer, head),
    )
    silent = [
        head_name(layer, head)
        for layer, block in enumerate(exact.blocks)
        for head in range(exact.n_heads)
        if not block.W_V[head].any() or not block.W_O[head].any()
    ]
    tops = [side.top.cpu().numpy() for side in (raised, lowered)]
    nulls = [null_scores(top, pairs.target, permutations, seed) for top in tops]
    for name in silent:  # which tokens a head raises that writes nothing is an accident
        layer, head = (int(part) for part in name[1:].split("-H"))
        for null in nulls:
            null[layer, head] = k / model.d_vocab
    notes = []
    if model.id in BUNDLED_MODELS:
        notes.append(f"{model.id} is a model organism: nothing here is a claim about GPT-2.")
    if pairs.constant_score(k) >= 0.5:
        notes.append(
            f"A head that always writes the {k} most frequent targets would score "
            f"{pairs.constant_score(k):.2f} here: compare each score with that and with its null."
        )
    if pairs.listed > len(pairs):
        notes.append(
            f"{pairs.listed - len(pairs)} of {pairs.listed} pairs were left out: "
            "one of their words is not a single token of this model."
        )
    if silent:
        notes.append(f"{len(silent)} heads have no OV circuit; each scores k / d_vocab.")
    return HeadScores(
        model=model.id,
        fingerprint=model.fingerprint,
        relation=pairs.relation.name,
        category=pairs.relation.category,
        source=pairs.relation.source,
        k=k,
        n_listed=pairs.listed,
        n_pairs=len(pairs),
        n_targets=pairs.distinct_targets,
        scores=_grid(raised),
        suppression=_grid(lowered),
        null_scores=nulls[0],
        null_suppression=nulls[1],
        constant=pairs.constant_score(k),
        chance=k / model.d_vocab,
        permutations=permutations,
        seed=seed,
        silent=silent,
        pairs=list(pairs.words),
        hits=raised.hits.cpu().numpy(),
        lowered=lowered.hits.cpu().numpy(),
        top=tops[0][..., 0],
        classes=published_classes(model),
        notes=notes,
    )


def score_heads(
    model: Any,
    relation: Any = "name_copying",
    k: int | None = None,
    *,
    min_pairs: int = MIN_PAIRS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> HeadScores:
    """Score every head for one relation from the weights alone.

    Args:
        model: an id, a folder, a `LanguageModel`, or a loaded `transformers` GPT-2.
        relation: a name (`saekit.heads.relations.relation_names`), a file (CSV with the columns
            source,target, or JSON), or a list of (source, target): words or token ids.
        k: places that count; 1 for copying relations and 10 for others when not given.
        min_pairs: fewer pairs than this are refused.
        permutations, seed: of the shuffled-target null.

    Returns:
        Scores and suppression [n_layers, n_heads] in [0, 1] with baselines, and per-pair results.

    Raises:
        ModelError: not a GPT-2.
        InputError: the relation cannot be used, too few pairs are single tokens, or k is out of
            range.
    """
    opened = open_relation(relation)
    language_model = open_for_pairs(model, opened)
    pairs = token_pairs(language_model, opened, min_pairs)
    chosen = check_k(k, opened.default_k, language_model.d_vocab)
    exact = ExactModel(language_model)
    return score_pairs(language_model, exact, pairs, chosen, permutations, seed)
