"""Held features: what is written, where, and that everything later is live.

Mutations tried by hand, each of which fails here: the clean activation in place of the live one;
the stream taken before the write; the position counted without the window's first; random
vectors not scaled; the clamped features among the random ones.
"""

import pytest
import torch

from saekit.errors import InputError
from saekit.model.exact import ExactModel
from saekit.routes.intervention.holds import (
    Clamp,
    merged,
    with_features_held,
    with_other_stream,
    with_random_writes,
)
from saekit.routes.target import in_the_stream
from saekit.sae.dictionary import Dictionary

PROMPT = 'The opposite of "large" is "'


@pytest.fixture(scope="module")
def setting(tiny_model, random_dictionaries):
    exact = ExactModel(tiny_model, torch.float64)
    return exact, exact.run(tiny_model.prompt(PROMPT)), random_dictionaries


def test_nothing_held_differently_changes_nothing(setting):
    exact, clean, dictionaries = setting
    clamps = []
    for layer in (0, 2):
        acts = dictionaries[layer].encode(clean.resid[layer, 5])
        active = acts.nonzero().flatten()
        clamps.append(Clamp(layer, 5, active, acts[active]))
    streams, written = with_features_held(exact, clean, dictionaries, merged(clamps), 8)
    assert torch.allclose(streams, clean.resid[:, 8], atol=1e-4)
    assert set(written) == {(0, 5), (2, 5)}


def test_held_features_are_at_their_values_after_each_write(known_features, planted):
    """u is held at 5 at layers 0-2: the decoder row is written once, then it is there already."""
    model = planted({})
    exact, dictionaries = ExactModel(model, torch.float64), known_features(model)
    clean = exact.run(model.prompt(PROMPT))
    held = [Clamp(layer, 5, torch.tensor([0]), torch.tensor([5.0])) for layer in range(3)]
    streams, written = with_features_held(exact, clean, dictionaries, merged(held), 5)
    changes = [float(written[layer, 5].changes) for layer in range(3)]
    assert changes == pytest.approx([2, 0, 0], abs=1e-5)  # "large" is 3 u
    assert dictionaries[3].encode(streams[3])[0] == pytest.approx(5, abs=1e-5)
    assert torch.allclose(streams[1:], streams[:1].expand(3, -1), atol=1e-6)  # silent blocks


def test_a_write_at_the_last_layer_is_the_decoder_rows(setting):
    exact, clean, dictionaries = setting
    d = dictionaries[3]
    before = d.encode(clean.resid[3, 8])
    clamps = merged([Clamp(3, 8, torch.tensor([4, 9]), torch.tensor([2.5, 0.0]))])
    streams, _ = with_features_held(exact, clean, dictionaries, clamps, 8)
    expected = (2.5 - before[4]) * d.W_dec[4] - before[9] * d.W_dec[9]
    assert torch.allclose(streams[3] - clean.resid[3, 8], expected.double(), atol=1e-5)
    assert torch.equal(streams[:3], clean.resid[:3, 8])


def test_random_writes_are_as_long_and_of_other_features(setting):
    exact, clean, dictionaries = setting
    features = torch.arange(44)  # of 48: only four are left to draw from
    clamps = merged([Clamp(3, 8, features, torch.cat([torch.tensor([3.0, 1.0]), torch.zeros(42)]))])
    before = dictionaries[3].encode(clean.resid[3, 8])
    streams, written = with_features_held(exact, clean, dictionaries, clamps, 8)
    written[3, 8].changes[4:] = 0  # as many changes as there are features left
    random = with_random_writes(exact, clean, dictionaries, written, 8, 12, seed=1)
    moved = random[:, 3] - clean.resid[3, 8]
    length = (streams[3] - clean.resid[3, 8]).norm()
    assert torch.allclose(moved.norm(dim=1), length.expand(12), rtol=1e-5)
    rows = dictionaries[3].W_dec[44:].double()
    left = moved - moved @ torch.linalg.pinv(rows) @ rows
    assert left.norm(dim=1).max() < 1e-4 * length
    assert len(before)
    again = with_random_writes(exact, clean, dictionaries, written, 8, 12, seed=1)
    assert torch.equal(random, again)


def test_another_prompts_stream_at_layer_0_is_the_other_prompt(setting, tiny_model):
    exact, clean, _ = setting
    ids = clean.ids.clone()
    ids[5] = tiny_model.single_token("small")
    other = exact.run(ids)
    streams = with_other_stream(exact, clean, other, [(0, 5)], 8)
    assert torch.allclose(streams, other.resid[:, 8], atol=1e-10)
    elsewhere = with_other_stream(exact, clean, other, [(0, 4)], 8)
    assert torch.allclose(elsewhere, clean.resid[:, 8], atol=1e-10)


def test_one_feature_at_two_values_is_refused():
    one, two = (Clamp(2, 5, torch.tensor([7]), torch.tensor([v])) for v in (0.0, 1.5))
    assert len(merged([one, one])[2, 5].features) == 1
    with pytest.raises(InputError, match="Feature 2/7 is asked to be 0 and 1.5 at once"):
        merged([one, two])


def test_a_dictionary_that_normalises_tokens_is_refused():
    d = Dictionary(1, "standard", torch.eye(4), torch.zeros(4), torch.eye(4), torch.zeros(4),
                   normalize_activations="layer_norm")  # fmt: skip
    with pytest.raises(InputError, match="layer 1 normalises each token"):
        in_the_stream(d)
