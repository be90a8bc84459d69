"""Salient operations of planted heads, and the kinds by hand.

Mutations tried by hand, each of which fails here: the layer-0 input given to later layers; raised
and lowered exchanged; the row's mean not taken off.
"""

import pytest
import torch

from saekit.heads.pairs import open_for_pairs
from saekit.heads.relations import open_relation
from saekit.heads.salient import N_INPUTS, kind_of, salient_operations, strongest
from saekit.heads.weights import head_input
from saekit.model.exact import ExactModel
from tests.unit.heads.planted import COPIER, FIRST_LAYER, RELATION, SUPPRESSOR, random_model
from tests.unit.heads.words import with_words


@pytest.mark.parametrize(
    ("source", "output", "kind"),
    [
        (" Mary", " Mary", "same token"),
        (" Mary", "Mary", "same word"),
        (" mary", " MARY", "same word"),
        (" walk", " walked", "same beginning"),
        (" large", " larger", "same beginning"),
        (" hot", " cold", "other"),
        (" a", " an", "other"),  # too short to tell
        (" ", "  ", "other"),
    ],
)
def test_kinds(source, output, kind):
    assert kind_of(source, output) == kind


def test_planted_heads_show_what_they_do(planted):
    model = with_words(planted)
    exact = ExactModel(model)
    found = salient_operations(
        model, exact, [(COPIER, False), (FIRST_LAYER, False), (SUPPRESSOR, True), (RELATION, False)]
    )
    for entry in found[:3]:
        assert entry.kinds["same token"] == 1
        assert all(row.input == row.outputs[0] for row in entry.rows)
        assert len(entry.rows) == N_INPUTS
    assert [entry.side for entry in found] == ["raises", "raises", "lowers", "raises"]
    assert found[3].kinds["same token"] == 0
    for row in found[3].rows:  # partners are 2i and 2i + 1
        one, two = (model.tokenizer.encode(text)[0] if text != "<bos>" else 0
                    for text in (row.input, row.outputs[0]))  # fmt: skip
        assert one ^ 1 == two


def test_strength_is_the_best_logit_above_the_mean_of_its_row():
    hf = random_model(seed=2, n_layers=2, n_heads=2, d_model=16, vocabulary=50)
    exact = ExactModel(open_for_pairs(hf, open_relation([(1, 1)])))
    everything = torch.arange(50)
    values, inputs, outputs = strongest(exact, (1, 1), head_input(exact, everything, 1), False)
    block = exact.blocks[1]
    logits = head_input(exact, everything, 1) @ block.W_V[1] @ block.W_O[1] @ exact.W_U
    above = logits.max(1).values - logits.mean(1)
    assert values == pytest.approx(above.sort(descending=True).values[:N_INPUTS].numpy(), rel=1e-4)
    assert above[inputs[0]] == above.max()
    assert outputs[0, 0] == logits[inputs[0]].argmax()


def test_each_layer_is_given_its_own_input():
    """In a random model the first MLP is no identity: layer 1 reads it, layer 0 does not."""
    model = with_words(random_model(seed=3, n_layers=2, n_heads=2, d_model=16, vocabulary=50))
    exact, everything = ExactModel(model), torch.arange(50)
    found = salient_operations(model, exact, [((0, 1), False), ((1, 1), False)])
    for layer, entry in enumerate(found):
        own = head_input(exact, everything, layer)
        values, _, _ = strongest(exact, (layer, 1), own, False)
        listed = sorted((row.strength for row in entry.rows), reverse=True)
        assert listed == pytest.approx(values.tolist(), abs=1e-3)
