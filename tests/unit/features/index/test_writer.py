import numpy as np
import pytest

from saekit.features.index.statistics import Moments
from saekit.features.index.token_pairs import ENTRY, PairTable
from saekit.features.index.writer import PER_RANK, IndexWriter
from saekit.features.names.lexicons import Words

D_SAE, TIMES = 200, 50


@pytest.mark.parametrize("rank", ["match", "purity", "lift", "mean", "max", "density"])
def test_the_first_features_of_every_rank_are_listed_where_ranks_disagree(rank):
    """One token on which all features fire, with statistics that have nothing to do with another.

    Mutations tried: each of the ranks left out.
    """
    rng = np.random.default_rng(0)
    entries = np.zeros(D_SAE, ENTRY)
    entries["key"] = np.arange(D_SAE)
    entries["count"] = rng.integers(5, TIMES + 1, D_SAE)
    entries["largest"] = rng.random(D_SAE) + 1
    entries["total"] = entries["count"] * entries["largest"] * rng.random(D_SAE)
    moments = Moments(D_SAE)
    moments.count = rng.integers(TIMES, 100 * TIMES, D_SAE)
    moments.total = entries["total"] * (1 + 50 * rng.random(D_SAE))
    moments.largest = (entries["largest"] * (1 + 9 * rng.random(D_SAE))).astype(np.float32)
    attributes = {"layers": [0], "d_sae": D_SAE, "n_tokens": TIMES}
    with IndexWriter(attributes, 1, 1, Words(["a"]), np.array([TIMES]), 1) as writer:
        listed = writer._token_features(0, PairTable(D_SAE, entries), moments, 1)[2]

    share, mean = entries["count"] / TIMES, entries["total"] / entries["count"]
    purity = entries["total"] / moments.total
    score = {
        "match": purity * share * entries["largest"] / moments.largest, "purity": purity,
        "lift": share / moments.count, "mean": mean, "max": entries["largest"],
        "density": -moments.count,
    }[rank]  # fmt: skip
    assert set(np.argsort(-score)[:PER_RANK]) <= set(listed)
    assert len(listed) <= 6 * PER_RANK
