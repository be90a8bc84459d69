"""The byte-level BPE: any text survives, words split as in GPT-2."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.text import relational
from saekit.text.tokenizer import BOS, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(islice(relational.documents(seed=0), 200), 400)


def test_size_and_bos(tokenizer):
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id(BOS) == 0
    assert tokenizer.encode(BOS).ids == [0]


def test_words_split_as_in_gpt2(tokenizer):
    """A space belongs to the word after it; quotes, digits and letters never share a token."""
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str('is "large" 12')]
    assert pieces == ["is", 'Ġ"', "large", '"', "Ġ12"]


def test_deterministic(tokenizer):
    again = train_tokenizer(islice(relational.documents(seed=0), 200), 400)
    assert again.to_str() == tokenizer.to_str()


@given(text=st.text())
def test_any_text_survives(tokenizer, text):
    if BOS not in text:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
