"""Ranking: extremes against torch.topk, ties by hand, near ties in float64.

Mutations tried by hand, each of which fails here: the tail after the last whole block left out;
ids of the blocks without their offset; UNSURE = 0 (float32 decides alone); ties all counted as
hits; k - 1 in place of k.
"""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.heads import ranking
from saekit.heads.ranking import BLOCK, extremes, rank_targets, tied_share
from saekit.model.exact import ExactModel


@settings(deadline=None)
@given(
    size=st.integers(5, 9 * BLOCK), n=st.integers(1, 4), seed=st.integers(0, 999), up=st.booleans()
)
def test_extremes_equal_topk(size, n, seed, up):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, size, generator=generator)
    values, ids = extremes(logits, n, up)
    expected = logits.topk(n, dim=-1, largest=up)
    assert torch.equal(values, expected.values)
    assert torch.equal(logits.gather(-1, ids), expected.values)


def test_the_tail_behind_the_last_block_counts():
    logits = torch.zeros(1, 20 * BLOCK + 7)
    logits[0, -1], logits[0, -2], logits[0, 3] = 3, -4, 2
    assert extremes(logits, 2, True)[1].tolist() == [[20 * BLOCK + 6, 3]]
    assert extremes(logits, 1, False)[1].tolist() == [[20 * BLOCK + 5]]


@pytest.mark.parametrize(
    ("row", "target", "k", "share"),
    [
        ([3, 2, 1, 0], 0, 1, 1),
        ([3, 2, 1, 0], 1, 1, 0),
        ([3, 2, 1, 0], 1, 2, 1),
        ([3, 3, 1, 0], 1, 1, 0.5),  # two share one place
        ([3, 3, 3, 0], 1, 2, 2 / 3),
        ([4, 3, 3, 3], 2, 2, 1 / 3),
        ([0, 0, 0, 0], 2, 1, 0.25),  # a silent head: k / d_vocab
    ],
)
def test_ties_share_the_places_that_are_left(row, target, k, share):
    logits = torch.tensor([row], dtype=torch.float64)
    assert tied_share(logits, torch.tensor([target]), k).item() == pytest.approx(share)


def model_of(W_U):
    """As much of an ExactModel as ranking uses: one head whose W_O is the identity."""
    exact = object.__new__(ExactModel)
    exact.W_U, exact.d_head = W_U, W_U.shape[0]
    exact.blocks = [SimpleNamespace(W_O=torch.eye(exact.d_head)[None])]
    return exact


def ranked(W_U, values, target, k):
    exact = model_of(W_U)

    def writes(layer, head, rows):
        return values[layer, head, rows].double()

    return rank_targets(exact, values.float(), target, k, writes)


def test_differences_below_float32_are_decided_in_float64():
    """1 + 1e-9 and 1 are the same in float32: only float64 tells which is larger."""
    W_U = torch.eye(4)
    values = torch.tensor([[[[1.0, 1 + 1e-9, 0, 0], [1 + 1e-9, 1.0, 0, 0]]]], dtype=torch.float64)
    raised, _ = ranked(W_U, values, torch.tensor([0, 0]), 1)
    assert raised.hits[0, 0].tolist() == [0, 1]


def test_where_float32_has_the_order_wrong():
    """1000 + 1.00002 - 1000 loses its last digits in float32 and falls below 1.00001."""
    W_U = torch.tensor([[1.0, 0, 0, 0], [1.00002, 1.00001, 0, 0], [1, 0, 0, 0]])
    values = torch.tensor([[[[1000.0, 1, -1000]]]], dtype=torch.float64)
    assert (values.float() @ W_U).argmax() == 1 != (values @ W_U.double()).argmax()
    raised, _ = ranked(W_U, values, torch.tensor([0]), 1)
    assert raised.hits.item() == 1
    raised, _ = ranked(W_U, values, torch.tensor([1]), 1)
    assert raised.hits.item() == 0


def test_exact_ties_between_tokens_with_equal_embeddings():
    W_U = torch.randn(8, 40, generator=torch.Generator().manual_seed(0))
    W_U[:, 7] = W_U[:, 3]
    values = W_U[:, 3].double()[None, None, None]
    W_U[:, [t for t in range(40) if t not in (3, 7)]] *= 0.1
    raised, lowered = ranked(W_U, values, torch.tensor([3]), 1)
    assert raised.hits.item() == 0.5
    assert lowered.hits.item() == 0
    raised, _ = ranked(W_U, values, torch.tensor([3]), 2)
    assert raised.hits.item() == 1


def test_chunks_change_nothing(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    W_U = torch.randn(8, 500, generator=generator)
    values = torch.randn(1, 1, 37, 8, generator=generator).double()
    target = (values[0, 0].float() @ W_U).topk(20).indices[:, 12]  # not among the 10, but ...
    target[::2] = (values[0, 0].float() @ W_U).topk(20).indices[::2, 7]  # ... every other one is
    whole = ranked(W_U, values, target, 10)
    monkeypatch.setattr(ranking, "BUDGET", 1200)
    parts = ranked(W_U, values, target, 10)
    for one, two in zip(whole, parts, strict=True):
        assert torch.equal(one.hits, two.hits)
        assert torch.equal(one.top, two.top)
    assert whole[0].hits[0, 0].tolist() == [1, 0] * 18 + [1]
