"""Which features are about a token: from the token table of an index to ranked hits.  numpy only.

Ranks:
    match    purity x share x peak: 1 for a feature that fires on every such token, on nothing else,
             and nowhere more strongly
    purity   how much of the feature's activation, added up over the text, is on this token
    lift     P(active | token) / P(active)
    mean     activation on the token, where active
    max      the largest activation on the token
    density  how often the feature fires in general, the rarest first

They order the features that the index lists for the token.  The first five of each layer by every
one of these ranks are among them, of all features that fire on at least a tenth of the token's
positions and at least twice; beyond, the list has up to ten per layer by purity.

No single one of the three factors is enough.  A feature that fires weakly on every " large" and
strongly on " low" has a high lift for both; one that fires on 600 " opposite" and, more strongly,
on 19 " called" has a high purity for the first, but its strongest examples are of the second; one
that fires on a quarter of the tokens "large" and on nothing else has purity 1.
"""

from collections.abc import Iterable

import numpy as np

from saekit.errors import InputError
from saekit.features.index.index_file import IndexFile
from saekit.features.records import TokenHit

RANKS = ("match", "purity", "lift", "mean", "max", "density")


def search(
    index: IndexFile,
    token: str | int,
    layers: Iterable[int] | None,
    top: int,
    rank: str,
    max_density: float | None,
    min_share: float,
) -> list[TokenHit]:
    """See `FeatureIndex.by_token`."""
    if rank not in RANKS:
        raise InputError(f'There is no rank "{rank}"; choose from {", ".join(RANKS)}.')
    if top < 1:
        raise InputError(f"{top} features cannot be listed; ask for at least 1.")
    if max_density is not None and not 0 <= max_density <= 1:
        raise InputError(f"The largest density is {max_density}; it must be between 0 and 1.")
    wanted = None if layers is None else [index.slot(layer) for layer in layers]
    hits: list[TokenHit] = []
    for token_id in index.words.ids(token):
        hits += _hits(index, token_id, wanted, max_density, min_share)
    if rank == "density":
        hits.sort(key=lambda hit: (hit.density, -hit.lift))
    else:
        hits.sort(key=lambda hit: (getattr(hit, rank), hit.count, hit.mean), reverse=True)
    return hits[:top]


def _hits(
    index: IndexFile,
    token: int,
    slots: list[int] | None,
    max_density: float | None,
    min_share: float,
) -> list[TokenHit]:
    """The stored entries of one token."""
    start, end = index.read("tokens/start", slice(token, token + 2))
    part = slice(int(start), int(end))
    slot, feature, count, mean, peak = (
        index.read(f"tokens/{name}", part) for name in ("layer", "feature", "count", "mean", "max")
    )
    token_count = int(index.token_counts[token])
    times = index.summary["count"][slot, feature]
    density = times / index.n_tokens
    maximum = index.summary["maximum"][slot, feature].astype(np.float64)
    mean = mean * maximum
    purity = np.minimum(1, count * mean / (times * index.summary["mean"][slot, feature]))
    keep = count >= min_share * token_count
    if slots is not None:
        keep &= np.isin(slot, slots)
    if max_density is not None:
        keep &= density <= max_density
    return [
        TokenHit(
            layer=index.layers[slot[i]],
            feature=int(feature[i]),
            token=index.vocabulary[token],
            token_id=token,
            count=int(count[i]),
            token_count=token_count,
            mean=float(mean[i]),
            max=float(peak[i] * maximum[i]),
            lift=float(count[i] / token_count / density[i]),
            purity=float(purity[i]),
            peak=min(float(peak[i]), 1.0),
            density=float(density[i]),
        )
        for i in np.flatnonzero(keep)
    ]
