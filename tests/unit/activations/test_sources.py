"""The source that runs the model, and the shuffle buffer over it."""

from itertools import islice

import numpy as np
import pytest
import torch

from saekit.activations import (
    ActivationSource,
    ModelActivations,
    ShuffleBuffer,
    context_rows,
    residuals,
)
from saekit.errors import InputError, TrainingError
from saekit.text import relational


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3, sentences=(1, 1)), 300))


def test_a_pass_is_the_tokens_of_whole_rows_without_bos(tiny_model, documents):
    source: ActivationSource = ModelActivations(tiny_model, documents, [3, 0, 1], 16)
    assert (source.layers, source.d_model) == ([0, 1, 3], 32)
    rows = list(islice(context_rows(tiny_model, documents, 16), 256))
    ids = torch.from_numpy(np.stack(rows)).long()
    keep = ids != tiny_model.bos
    assert ids[:, 0].eq(tiny_model.bos).all()
    assert keep.sum() < keep.numel() - len(rows)  # separators are left out as well
    expected = residuals(tiny_model, ids, [0, 1, 3])[:, keep]
    # mutation tried: BOS positions kept
    found = source.next_pass()
    assert torch.equal(found, expected)
    assert source.position()[0] == 256


def test_a_pass_is_the_same_from_a_position(tiny_model, documents):
    source = ModelActivations(tiny_model, documents, None, 16)
    source.next_pass()
    position = source.position()
    expected = source.next_pass()
    again = ModelActivations(tiny_model, documents, None, 16)
    again.seek(position)
    assert torch.equal(again.next_pass(), expected)


def test_a_source_that_ends(tiny_model, documents):
    source = ModelActivations(tiny_model, iter(documents[:20]), [1], 16)
    passes = 0
    while source.next_pass() is not None:
        passes += 1
    assert passes == 1
    with pytest.raises(InputError, match="Layer 7"):
        ModelActivations(tiny_model, documents, [7], 16)


def shuffled(model, text, **settings):
    options = {"batch_tokens": 20, "buffer_tokens": 60, "seed": 5, **settings}
    return ShuffleBuffer(ModelActivations(model, text, [0, 1, 3], 16), **options)


def test_batches_are_activations_of_the_text(tiny_model, documents):
    stream = shuffled(tiny_model, documents)
    places = stream.next_batch()
    numbers = stream.numbers[places.numpy()]
    expected = ModelActivations(tiny_model, documents, [0, 1, 3], 16).next_pass()
    for slot in range(3):
        assert torch.equal(stream.layer(slot, places), expected[slot, numbers])


def test_resuming_gives_the_same_bits(tiny_model, documents):
    stream = shuffled(tiny_model, documents, buffer_tokens=3000, batch_tokens=400)
    for _ in range(11):
        stream.next_batch()
    state = stream.state()
    expected = [stream.layer(2, stream.next_batch()).clone() for _ in range(6)]
    again = shuffled(tiny_model, documents, buffer_tokens=3000, batch_tokens=400)
    again.load_state(state)
    for batch in expected:
        assert torch.equal(again.layer(2, again.next_batch()), batch)


def test_one_shot_text_ends(tiny_model, documents):
    stream = shuffled(tiny_model, iter(documents[:3]))
    with pytest.raises(TrainingError, match=r"ended after \d+ tokens"):
        for _ in range(12):
            stream.next_batch()
