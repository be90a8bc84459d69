"""What a circuit says beside its shares: other ablations of the set, and why its edges exist."""

import statistics
from collections.abc import Sequence

from tqdm.auto import tqdm

from saekit.coordinates import feature_name, head_name
from saekit.model.exact import ExactModel, Forward
from saekit.routes import circuit as parts
from saekit.routes.ablation.effects import effects
from saekit.routes.ablation.removal import EdgeDrops
from saekit.routes.ablation.replacements import RENORMALISE, ZERO, Replacement
from saekit.routes.attribution.qk import Part, ScoreSplit, split_score
from saekit.routes.attribution.shares import Head, share_of_drop
from saekit.routes.circuit import rounded
from saekit.routes.feature_names import Namer
from saekit.routes.targets import Target
from saekit.sae.storage.dictionary_set import DictionarySet

TOP_HEADS = 3  # of the set, strongest first: what one can read beside a picture
TOP_PAIRS = 3
DELAY = 2.0  # seconds without a progress bar


def ablations(
    exact: ExactModel,
    clean: Forward,
    target: Target,
    key: int,
    heads: Sequence[Head],
    positions: Sequence[int],
    others: Sequence[Replacement],
    zero: tuple[EdgeDrops, list[float]],
    n_random: int,
    seed: int,
) -> list[parts.Ablation]:
    """The set removed in every way: zero, renormalised rows, `others`, and along the direct path.

    Args:
        key, positions: tensor indices, as in `EdgeDrops`.
        zero: the drops of zero ablation, and those of its random sets.
        n_random: random sets of the same form, for each way.
    """
    ways = [
        (ZERO, False),
        (RENORMALISE, False),
        *((other, False) for other in others),
        (ZERO, True),
    ]
    rows = []
    shown = tqdm(ways if heads else [], "ablations", leave=False, delay=DELAY, unit="way")
    for instead, direct in shown:
        if instead is ZERO and not direct:
            causal, random = zero
        else:
            causal = EdgeDrops(exact, clean, target, key, heads, positions, instead, direct)
            random = causal.random(heads, n_random, seed)
        (effect,) = effects(exact, clean, target, [heads], [key], None, instead, direct)
        joint, singles = causal.joint(heads), sum(causal.single[head] for head in heads)
        p = target.value(clean)
        rows.append(
            parts.Ablation(
                name=instead.name,
                direct=direct,
                joint_drop=rounded(joint),
                sum_of_single_drops=rounded(singles),
                redundancy=rounded(joint - singles),
                share_causal=rounded(share_of_drop(joint, causal.all_edges, p)),
                share_causal_of_key=rounded(share_of_drop(joint, causal.key_edges, p)),
                random_median=rounded(statistics.median(random)) if random else None,
                logit_drop=rounded(effect.logit),
                prediction_after=rounded(effect.probability),
            )
        )
    return rows


def matches(
    exact: ExactModel,
    clean: Forward,
    dictionaries: DictionarySet,
    called: Namer,
    heads: Sequence[Head],
    key: int,
    query: int,
    first: int,
) -> list[parts.Match]:
    """Why the strongest heads attend from query to key rather than elsewhere (qk.py).

    Args:
        heads: the strongest first; those whose input layer has no dictionary are left out.
        called: what to call a feature.
        key, query, first: tensor indices; `first` is position 1.
    """
    readable = [head for head in heads if head[0] in dictionaries.layers][:TOP_HEADS]
    against = [k for k in range(first, query + 1) if k != key]
    found = [
        split_score(exact, clean, dictionaries[head[0]], head, query, key, against)
        for head in readable
    ]
    return [_match(split, called, first) for split in found]


def _match(split: ScoreSplit, called: Namer, first: int) -> parts.Match:
    layer = split.head[0]

    def name(part: Part) -> str | None:
        return called(layer, int(part))

    return parts.Match(
        head=head_name(*split.head),
        score=rounded(split.score),
        contrast=rounded(split.contrast),
        against=[k + 1 - first for k in split.against],
        margin=rounded(split.margin),
        in_features=rounded(split.in_features()),
        with_error=rounded(split.with_error()),
        key_features=[
            parts.KeyFeature(feature_name(layer, int(part)), rounded(value), name(part))
            for part, value in split.top_keys(TOP_PAIRS)
        ],
        pairs=[
            parts.MatchedPair(
                query=feature_name(layer, int(pair.query)),
                key=feature_name(layer, int(pair.key)),
                value=rounded(pair.value),
                query_name=name(pair.query),
                key_name=name(pair.key),
            )
            for pair in split.top(TOP_PAIRS)
        ],
    )
