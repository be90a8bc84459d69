"""Bulk activations against Hugging Face's own hidden states; the shuffled stream."""

from itertools import islice

import numpy as np
import pytest
import torch

from saekit.activations import (
    ShuffledActivations,
    check_layers,
    context_rows,
    open_text,
    residuals,
    run_blocks,
    unembed,
)
from saekit.errors import InputError, TrainingError
from saekit.text import relational


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3, sentences=(1, 1)), 300))


@pytest.fixture(scope="module")
def ids(tiny_model, documents):
    return torch.from_numpy(
        np.stack(list(islice(context_rows(tiny_model, documents, 24), 3)))
    ).long()


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def test_residuals_are_the_hidden_states_before_the_final_norm(tiny_model, ids):
    caught = []
    block = tiny_model.hf.transformer.h[-1]
    handle = block.register_forward_hook(lambda *call: caught.append(call[-1]))
    with torch.no_grad():
        expected = tiny_model.hf(ids, output_hidden_states=True).hidden_states
    handle.remove()
    found = residuals(tiny_model, ids)
    assert found.shape == (4, 3, 24, 32)
    for layer in range(3):
        assert relative(found[layer], expected[layer]) < 1e-5
    # mutation tried: returning Hugging Face's last hidden state, which is after ln_f
    assert relative(found[3], caught[0]) < 1e-5
    assert relative(found[3], expected[3]) > 0.1


def test_scaled_attention_and_other_activation_functions(tiny_model, ids):
    """The options of GPT-2's configuration that change a block."""
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.model.loading import LanguageModel

    config = GPT2Config(
        vocab_size=tiny_model.d_vocab, n_positions=32, n_embd=16, n_layer=3, n_head=2,
        scale_attn_by_inverse_layer_idx=True, activation_function="relu", initializer_range=0.2,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    model = LanguageModel("other", hf, tiny_model.tokenizer)
    with torch.no_grad():
        expected = hf(ids, output_hidden_states=True)
        found = residuals(model, ids)
        assert relative(found[2], expected.hidden_states[2]) < 1e-5
        assert relative(unembed(model, found[3]), expected.logits) < 1e-5


def test_a_run_can_be_taken_up_at_any_layer(tiny_model, ids):
    streams = residuals(tiny_model, ids)
    with torch.no_grad():
        assert relative(run_blocks(tiny_model, streams[1], 1, 3), streams[3]) < 1e-6


def test_only_the_needed_blocks_run(tiny_model, ids):
    called = []
    handles = [
        block.ln_1.register_forward_hook(lambda *_, number=number: called.append(number))
        for number, block in enumerate(tiny_model.hf.transformer.h)
    ]
    found = residuals(tiny_model, ids, [2, 0])
    for handle in handles:
        handle.remove()
    assert called == [0, 1]
    assert torch.equal(found, residuals(tiny_model, ids)[[0, 2]])


def test_bf16_is_close(tiny_model, ids):
    assert 1e-5 < relative(residuals(tiny_model, ids, bf16=True), residuals(tiny_model, ids)) < 0.02


def test_layers_are_checked(tiny_model, ids):
    assert check_layers(tiny_model, [2, 0, 2]) == [0, 2]
    with pytest.raises(InputError, match="Layer 4 does not exist.*0 to 3"):
        residuals(tiny_model, ids, [4])
    with pytest.raises(InputError, match="No layer"):
        check_layers(tiny_model, [])
    with pytest.raises(InputError, match="65 positions"):
        residuals(tiny_model, torch.zeros(1, 65, dtype=torch.long))


def test_text_can_be_named_in_several_ways(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n---\ntwo")
    expected = ["one", "two"]
    ways = (file, str(file), [file], ["one", "two"], lambda: iter(["one", "two"]))
    for text in ways:
        walk = open_text(text)
        assert list(walk()) == list(walk()) == expected


def stream_of(model, text, **settings):
    options = {"context": 16, "batch_tokens": 20, "buffer_tokens": 60, "seed": 5, **settings}
    return ShuffledActivations(model, text, [0, 1, 3], **options)


def test_batches_are_shuffled_tokens_of_the_text_without_bos(tiny_model, documents):
    stream = stream_of(tiny_model, documents)
    batches = [stream.next_batch() for _ in range(3)]
    places = torch.cat(batches)
    assert len(places.unique()) == 60  # each token once
    assert not torch.equal(places, places.sort().values)
    # what the buffer should hold: tokens of whole contexts that are not BOS, in order
    rows = list(islice(context_rows(tiny_model, documents, 16), stream.next_row))
    ids = torch.from_numpy(np.stack(rows)).long()
    keep = ids != tiny_model.bos
    assert ids[:, 0].eq(tiny_model.bos).all()
    assert keep.sum() < keep.numel() - len(rows)  # separators are left out as well
    expected = residuals(tiny_model, ids, [0, 1, 3])[:, keep]
    assert torch.allclose(stream.buffer[:, : expected.shape[1]], expected, atol=1e-4)
    # the same order in every layer
    for slot in range(3):
        chosen = stream.layer(slot, batches[1])
        assert torch.allclose(chosen, expected[slot, batches[1]], atol=1e-4)


def test_the_buffer_is_refilled_in_place_and_reordered(tiny_model, documents):
    stream = stream_of(tiny_model, documents)
    memory = stream.buffer.data_ptr()
    first = torch.cat([stream.next_batch() for _ in range(3)])
    before = stream.buffer.clone()
    second = torch.cat([stream.next_batch() for _ in range(3)])
    assert stream.buffer.data_ptr() == memory
    assert not torch.equal(before, stream.buffer)
    assert not torch.equal(first, second)
    assert stream.fill_number == 2


def test_a_position_is_enough_to_see_the_same_batches_again(tiny_model, documents):
    stream = stream_of(tiny_model, documents)
    for _ in range(4):
        stream.next_batch()
    position = (stream.fill_number, stream.first_row, stream.batch)
    expected = [stream.layer(2, stream.next_batch()).clone() for _ in range(4)]
    again = stream_of(tiny_model, documents)
    again.skip_to(*position)
    for batch in expected:
        assert torch.equal(again.layer(2, again.next_batch()), batch)


def test_short_text_starts_over_and_one_shot_text_ends(tiny_model, documents):
    stream = stream_of(tiny_model, documents[:3])
    for _ in range(12):
        stream.next_batch()
    assert stream.fill_number == 4
    stream = stream_of(tiny_model, iter(documents[:3]))
    with pytest.raises(TrainingError, match=r"ended after \d+ contexts of 16 tokens"):
        for _ in range(12):
            stream.next_batch()


@pytest.mark.parametrize("text", ["", "two words"])
def test_too_little_text(tiny_model, text):
    with pytest.raises(InputError, match="shorter than one context of 16"):
        stream_of(tiny_model, [text]).fill()


def test_impossible_context(tiny_model, documents):
    with pytest.raises(InputError, match="65 tokens is not possible.*2 to 64"):
        stream_of(tiny_model, documents, context=65).fill()


def test_values_that_are_not_finite_name_the_layer(tiny_model, documents, monkeypatch):
    import saekit.activations as module

    original = module.residuals

    def broken(*args, **kwargs):
        out = original(*args, **kwargs)
        out[1, 0, 2, 3] = float("nan")
        return out

    monkeypatch.setattr(module, "residuals", broken)
    with pytest.raises(TrainingError, match="layer 1 are not finite"):
        stream_of(tiny_model, documents).fill()
