import pytest
import torch
from numpy.testing import assert_allclose

from saekit.activations import residuals
from saekit.errors import InputError, MismatchError
from saekit.features.text_query import by_text

PROMPT = 'The opposite of "large" is "'
LARGE = 3  # see conftest.py


def test_features_of_a_text_equal_the_dense_encoding(index, plain_model, dictionaries):
    found = index.by_text(plain_model, dictionaries, PROMPT, top=2)
    ids = plain_model.prompt(PROMPT)
    assert found.tokens == plain_model.token_strings(ids[1:].tolist())
    streams = residuals(plain_model, ids[None], [0, 2, 3])[:, 0]
    for part, stream in zip(dictionaries, streams, strict=True):
        dense = part.encode(stream)
        for position in range(1, len(found.tokens) + 1):
            hits = found.at(position, part.layer)
            best = dense[position].topk(2).values
            assert_allclose([hit.activation for hit in hits], best[best > 0], rtol=1e-5)
            for hit in hits:
                assert_allclose(hit.activation, dense[position, hit.feature], rtol=1e-5)
                seen = index.densities(part.layer)[hit.feature]
                assert hit.density == pytest.approx(seen)
                maximum = index.maxima(part.layer)[hit.feature]
                assert hit.share_of_max == pytest.approx(hit.activation / maximum)


def test_positions_count_from_one_without_bos(plain_model, dictionaries):
    hits = by_text(plain_model, dictionaries, PROMPT, layers=[0], top=99).hits
    large = [hit for hit in hits if hit.feature == LARGE]
    assert [(hit.position, hit.token, hit.name) for hit in large] == [(5, "large", "0/3")]
    assert large[0].density is None
    assert large[0].share_of_max is None


def test_density_limit(index, plain_model, dictionaries):
    limit = 0.05
    hits = index.by_text(plain_model, dictionaries, PROMPT, top=99, max_density=limit).hits
    assert hits
    assert all(hit.density <= limit for hit in hits)
    with pytest.raises(InputError, match="needs an index"):
        by_text(plain_model, dictionaries, PROMPT, max_density=limit)


def test_wrong_texts(plain_model, tiny_model, dictionaries):
    with pytest.raises(InputError, match="empty"):
        by_text(plain_model, dictionaries, "")
    with pytest.raises(InputError, match="at most 63"):
        by_text(plain_model, dictionaries, "a " * 100)
    with pytest.raises(InputError, match="layer 1"):
        by_text(plain_model, dictionaries, "a", layers=[1])
    with pytest.raises(MismatchError):
        by_text(tiny_model, dictionaries, "a")


def test_nothing_is_left_for_backward(plain_model, dictionaries):
    by_text(plain_model, dictionaries, "large")
    assert torch.is_grad_enabled()
