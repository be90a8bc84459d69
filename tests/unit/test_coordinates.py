"""Names of layers, heads and features, forth and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.coordinates import (
    feature_name,
    head_name,
    hook_name,
    layer_of_hook,
    parse_feature,
    parse_head,
    parse_layers,
)
from saekit.errors import InputError

number = st.integers(0, 10_000)


def test_known_names():
    assert hook_name(0, 12) == "blocks.0.hook_resid_pre"
    assert hook_name(12, 12) == "blocks.11.hook_resid_post"
    assert head_name(9, 7) == "L9-H7"
    assert feature_name(8, 1234) == "8/1234"
    assert parse_head("9.7") == parse_head(" l9-h7 ") == (9, 7)


@given(st.integers(1, 200), st.data())
def test_hook_round_trip(n_layers, data):
    layer = data.draw(st.integers(0, n_layers))
    assert layer_of_hook(hook_name(layer, n_layers)) == layer


@given(number, number)
def test_head_and_feature_round_trips(layer, index):
    assert parse_head(head_name(layer, index)) == (layer, index)
    assert parse_feature(feature_name(layer, index)) == (layer, index)


@given(st.sets(st.integers(0, 12), min_size=1))
def test_layers_round_trip(layers):
    assert parse_layers(",".join(map(str, layers)), 12) == sorted(layers)


def test_layer_lists():
    assert parse_layers(None, 3) == parse_layers("all", 3) == [0, 1, 2, 3]
    assert parse_layers("0,3-5", 12) == [0, 3, 4, 5]
    assert parse_layers("5 - 6, 5", 12) == [5, 6]


@pytest.mark.parametrize("text", ["", "a", "1,,2", "-1", "3-", "1.5", "0;1"])
def test_not_a_layer_list(text):
    with pytest.raises(InputError, match="not a list of layers; write it as 0,3-5"):
        parse_layers(text, 12)


@pytest.mark.parametrize("text", ["13", "0,12-13", "5-3"])
def test_layers_out_of_range(text):
    with pytest.raises(InputError, match="out of range: this model has 0 to 12"):
        parse_layers(text, 12)


@pytest.mark.parametrize("layer", [-1, 13])
def test_layer_that_does_not_exist(layer):
    with pytest.raises(InputError, match=f"Layer {layer} does not exist"):
        hook_name(layer, 12)


@pytest.mark.parametrize("text", ["", "8", "8/", "/3", "8/-1", "8:3", "a/b", "8/3/1"])
def test_not_a_feature(text):
    with pytest.raises(InputError, match="not a feature; write it as layer/index"):
        parse_feature(text)


@pytest.mark.parametrize("text", ["", "L9", "9/7", "LH", "L9-H7-H1"])
def test_not_a_head(text):
    with pytest.raises(InputError, match="not a head; write it as L9-H7"):
        parse_head(text)


@pytest.mark.parametrize(
    "name", ["blocks.3.hook_resid_mid", "hook_embed", "blocks.x.hook_resid_pre"]
)
def test_not_a_hook(name):
    with pytest.raises(InputError, match="not a residual hook point"):
        layer_of_hook(name)
