"""The shuffle buffer: every token once, well mixed, the same order for all layers, resumable."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.activations import ShuffleBuffer
from saekit.activations.shuffle import GROUPS, group_sizes
from saekit.errors import TrainingError


class Counting:
    """A source whose activation at layer l of token t is (t, l); passes of the given sizes."""

    layers, d_model, device = (2, 5), 2, torch.device("cpu")

    def __init__(self, passes=(7,), tokens=10**9, dtype=torch.float32):
        self.passes, self.tokens, self.dtype = passes, tokens, dtype
        self.calls = self.token = 0

    def next_pass(self):
        size = min(self.passes[self.calls % len(self.passes)], self.tokens - self.token)
        if size <= 0:
            return None
        t = torch.arange(self.token, self.token + size)
        self.calls, self.token = self.calls + 1, self.token + size
        return torch.stack(
            [torch.stack([t, torch.full_like(t, layer)], 1) for layer in self.layers]
        ).to(self.dtype)

    def position(self):
        return [self.calls, self.token]

    def seek(self, position):
        self.calls, self.token = position


def serve(buffer, batches):
    """Numbers of the tokens of the next batches, read from the activations of layer 2."""
    out = []
    for _ in range(batches):
        places = buffer.next_batch()
        first, second = buffer.layer(0, places), buffer.layer(1, places)
        assert torch.equal(first[:, 0], second[:, 0])  # the same tokens in every layer
        assert (first[:, 1] == 2).all()
        assert (second[:, 1] == 5).all()
        numbers = first[:, 0].long().tolist()
        assert buffer.numbers[places.numpy()].tolist() == numbers
        out += numbers
    return out


def test_group_sizes():
    assert group_sizes(20).tolist() == [5, 5, 5, 5]
    assert group_sizes(10).tolist() == [2, 3, 2, 3]
    assert group_sizes(3).tolist() == [0, 1, 1, 1]


def test_sizes():
    """2.5 rounds are held: 4/4 of the newest refill, 3/4 of the one before, 2/4 and 1/4."""
    buffer = ShuffleBuffer(Counting(), batch_tokens=20, buffer_tokens=100)
    assert (buffer.round_tokens, buffer.capacity) == (40, 100)
    assert buffer.buffer.shape == (2, 100, 2)
    small = ShuffleBuffer(Counting(), batch_tokens=20, buffer_tokens=1)
    assert (small.round_tokens, small.capacity) == (20, 50)


sizes = st.tuples(st.integers(1, 9), st.integers(1, 120))
chunks = st.lists(st.integers(1, 40), min_size=1, max_size=4)


@settings(deadline=None)
@given(sizes, chunks, st.integers(0, 400), st.integers(-5, 5))
def test_every_token_is_served_exactly_once(size, passes, tokens, seed):
    """Up to the last partial batch of a text that ends.

    Mutations tried: `due < current` to `due <= current` where free places are found; a refill
    that begins one token late.
    """
    batch_tokens, buffer_tokens = size
    buffer = ShuffleBuffer(Counting(passes, tokens), batch_tokens, buffer_tokens, seed)
    served = []
    with pytest.raises(TrainingError, match="ended after"):
        while True:
            served += serve(buffer, 1)
    assert len(served) == tokens // batch_tokens * batch_tokens
    assert len(set(served)) == len(served)
    assert set(served) <= set(range(tokens))


@settings(deadline=None)
@given(sizes, chunks, chunks, st.integers(0, 60), st.integers(0, 300))
def test_the_order_does_not_depend_on_the_passes(size, one, other, seed, tokens):
    batches = tokens // size[0]
    served = [
        serve(ShuffleBuffer(Counting(passes, tokens), *size, seed), batches)
        for passes in (one, other)
    ]
    assert served[0] == served[1]


@settings(deadline=None)
@given(sizes, chunks, st.integers(0, 400), st.data())
def test_a_state_is_enough_to_continue(size, passes, tokens, data):
    """Also in the last round of a text that ends.

    Mutation tried: the order drawn over places, not over token numbers (a rebuilt buffer has its
    tokens in other places).
    """
    batches = tokens // size[0]
    before = data.draw(st.integers(0, batches))
    buffer = ShuffleBuffer(Counting(passes, tokens), *size, 3)
    serve(buffer, before)
    state = buffer.state()
    assert all(type(number) is int for number in state)
    expected = serve(buffer, batches - before)
    again = ShuffleBuffer(Counting(passes, tokens), *size, 3)
    again.load_state(state)
    assert again.state()[:2] == state[:2]
    assert serve(again, batches - before) == expected
    assert again.state() == buffer.state()


def test_resuming_reads_no_more_than_four_refills():
    source = Counting((10,))
    buffer = ShuffleBuffer(source, 20, 100)
    serve(buffer, 41)  # round 20 has begun: refills 17 to 20 are in the buffer
    state = buffer.state()
    assert source.token == 100 + 20 * 40
    # refill 17 begins with token 100 + 16 * 40, which is at the start of pass 74
    assert state == [20, 1, 10, 73, 730]
    source.seek(state[3:])
    assert source.token == 730
    fresh = Counting((10,))
    again = ShuffleBuffer(fresh, 20, 100)
    again.load_state(state)
    assert fresh.token == 900


def test_tokens_mix_over_refills():
    """A batch has tokens of the last four refills, in equal parts; nothing waits longer."""
    buffer = ShuffleBuffer(Counting((64,)), batch_tokens=400, buffer_tokens=4000)
    round_tokens, capacity = buffer.round_tokens, buffer.capacity
    assert (round_tokens, capacity) == (1600, 4000)
    serve(buffer, 4 * 9)  # rounds 0 to 8
    for _ in range(4):
        numbers = np.array(serve(buffer, 1))
        refills = (numbers - capacity) // round_tokens + 1
        assert buffer.round == 9
        counts = np.bincount(refills)[6:]
        assert len(counts) == GROUPS
        assert counts.sum() == 400
        assert np.abs(counts - 100).max() < 40  # hypergeometric: 4.6 standard deviations
        assert np.corrcoef(np.arange(400), numbers)[0, 1] < 0.2  # not in the order of the text


@settings(deadline=None)
@given(sizes, st.integers(1, 30), st.integers(0, 29))
def test_no_token_is_read_in_vain(size, batches, before):
    """All that is read is served, once; also where the run is taken up in the middle."""
    tokens, source = batches * size[0], Counting((7,))
    buffer = ShuffleBuffer(source, *size, tokens=tokens)
    served = serve(buffer, batches)
    assert sorted(served) == list(range(tokens))
    assert source.token < tokens + 7
    with pytest.raises(TrainingError):
        buffer.next_batch()
    buffer, again = (ShuffleBuffer(Counting((7,)), *size, tokens=tokens) for _ in range(2))
    serve(buffer, min(before, batches))
    again.load_state(buffer.state())
    assert serve(again, batches - min(before, batches)) == served[min(before, batches) * size[0] :]


def test_another_seed_is_another_order():
    orders = [serve(ShuffleBuffer(Counting(), 10, 50, seed), 5) for seed in (0, 1, -1)]
    assert len({tuple(order) for order in orders}) == 3
    assert serve(ShuffleBuffer(Counting(), 10, 50, 1), 5) == orders[1]


def test_the_buffer_is_refilled_in_place():
    buffer = ShuffleBuffer(Counting(), batch_tokens=20, buffer_tokens=50)
    memory = buffer.buffer.data_ptr()
    places = buffer.next_batch()
    kept = np.setdiff1d(np.arange(50), places.numpy())
    before = buffer.buffer.clone()
    buffer.next_batch()
    assert buffer.buffer.data_ptr() == memory
    assert torch.equal(buffer.buffer[:, kept], before[:, kept])
    assert (buffer.buffer[0, places, 0] >= 50).all()


@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bfloat16_takes_half_the_memory_and_rounds_once(source_dtype, dtype):
    buffer = ShuffleBuffer(Counting(dtype=source_dtype), 20, 50, dtype=dtype)
    places = buffer.next_batch()
    assert buffer.buffer.element_size() == dtype.itemsize
    expected = torch.from_numpy(buffer.numbers[places.numpy()])
    out = torch.empty(20, 2)
    assert buffer.layer(0, places, out=out) is out
    assert torch.equal(out[:, 0], expected.to(torch.bfloat16).float())  # numbers < 128: exact
    assert buffer.layer(0, places).dtype == dtype


def test_what_is_held_for_statistics():
    buffer = ShuffleBuffer(Counting(), 20, 100)
    buffer.fill()
    assert sorted(buffer.held(0)[:, 0].tolist()) == list(range(100))
    short = ShuffleBuffer(Counting(tokens=33), 20, 100)
    short.fill()
    assert sorted(short.held(1)[:, 0].tolist()) == list(range(33))


def test_a_source_that_is_another_one():
    buffer = ShuffleBuffer(Counting((30,)), 20, 100)
    serve(buffer, 30)
    with pytest.raises(TrainingError, match="not the one that the run"):
        ShuffleBuffer(Counting((3,)), 20, 100).load_state(buffer.state())


def test_values_that_are_not_finite_name_the_layer():
    class Broken(Counting):
        def next_pass(self):
            out = super().next_pass()
            if self.token > 60:
                out[1, 0, 1] = float("nan")
            return out

    buffer = ShuffleBuffer(Broken(), 20, 50)
    buffer.next_batch()
    with pytest.raises(TrainingError, match="layer 5 are not finite in tokens 50 to 69"):
        buffer.next_batch()
