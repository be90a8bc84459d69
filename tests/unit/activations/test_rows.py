"""Rows of token ids: texts of every kind, text that starts over, and going to a position."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.activations import TextRows, context_rows, documents_of, texts_of
from saekit.errors import InputError, TrainingError
from saekit.text import relational

IDS = [np.array([5, 6, 7]), np.array([0, 8, 9, 0, 10]), np.array([], dtype=int)]


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3, sentences=(1, 1)), 300))


def test_text_can_be_named_in_several_ways(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("one\n---\ntwo")
    expected = ["one", "two"]
    ways = (file, str(file), [file], ["one", "two"], lambda: iter(["one", "two"]))
    for text in ways:
        assert list(documents_of(text)) == list(texts_of(text)) == expected
    assert list(documents_of([file, file])) == expected * 2


def test_ids_are_rows_without_a_tokenizer(tiny_model):
    rows = context_rows(tiny_model, IDS, 4)
    assert [row.tolist() for row in rows] == [[0, 5, 6, 7], [0, 8, 9, 0]]
    with pytest.raises(InputError, match="holds token ids"):
        list(texts_of(["a", *IDS]))


@pytest.mark.parametrize("wrong", [-1, 640])
def test_ids_of_another_tokenizer(tiny_model, wrong):
    with pytest.raises(InputError, match=f"Token id {wrong} is outside the vocabulary .*640 ids"):
        list(context_rows(tiny_model, [np.array([5, wrong, 6])], 4))


def test_short_text_starts_over_and_one_shot_text_ends(tiny_model, documents):
    rows = TextRows(tiny_model, documents[:3], 16)
    once = list(context_rows(tiny_model, documents[:3], 16))
    taken = rows.take(2 * len(once) + 1)
    assert (taken.ids == np.stack([*once, *once, once[0]])).all()
    assert taken.documents[-1].max() == 6  # counted on: the seventh document
    assert rows.row == len(taken.ids)
    rows = TextRows(tiny_model, iter(documents[:3]), 16)
    assert len(rows.take(1000).ids) == len(once)
    assert rows.take(1) is None


@pytest.mark.parametrize("text", ["", "two words"])
def test_too_little_text(tiny_model, text):
    with pytest.raises(InputError, match="shorter than one context of 16"):
        TextRows(tiny_model, [text], 16).take(1)


def test_impossible_context(tiny_model, documents):
    with pytest.raises(InputError, match="65 tokens is not possible.*2 to 64"):
        TextRows(tiny_model, documents, 65).take(1)


def test_documents_are_numbered(tiny_model):
    rows = TextRows(tiny_model, IDS, 4).take(3)
    assert rows.ids.tolist() == [[0, 5, 6, 7], [0, 8, 9, 0], [0, 5, 6, 7]]
    # the separator and BOS are of the document that follows
    assert rows.documents.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1], [3, 3, 3, 3]]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    before=st.integers(0, 25),
    context=st.integers(2, 12),
)
def test_a_position_is_enough_to_continue(tiny_model, lengths, before, context):
    """Also over the end of the text.  Mutation tried: offset 0 in `PackedRow.end`."""
    text = [np.arange(1, 1 + length) % 640 for length in lengths]
    rows = TextRows(tiny_model, text, context)
    try:
        if before:
            rows.take(before)
        position = rows.position()
        expected = rows.take(7)
    except InputError:
        return  # shorter than one context
    again = TextRows(tiny_model, text, context)
    again.seek(position)
    assert again.position() == position
    found = again.take(7)
    assert (found.ids == expected.ids).all()
    assert (found.documents == expected.documents).all()
    assert again.position() == rows.position()


def test_passing_over_documents_tokenizes_nothing(tiny_model, documents, monkeypatch):
    rows = TextRows(tiny_model, documents, 16)
    while rows.position()[1] < 280:
        rows.take(1)
    position = rows.position()
    expected = rows.take(1).ids
    encoded = []
    original = type(tiny_model).encode_batch
    monkeypatch.setattr(
        type(tiny_model),
        "encode_batch",
        lambda self, texts: encoded.extend(texts) or original(self, texts),
    )
    again = TextRows(tiny_model, documents, 16)
    again.seek(position)
    assert (again.take(1).ids == expected).all()
    assert encoded == documents[position[1] :]


def test_positions_that_the_text_has_not(tiny_model, documents):
    rows = TextRows(tiny_model, iter(documents), 16)
    rows.take(1)
    with pytest.raises(TrainingError, match="one-shot text cannot be read again"):
        rows.seek([0, 0, 0])
    rows = TextRows(tiny_model, iter(documents), 16)
    rows.seek([1000, 400, 3])
    with pytest.raises(TrainingError, match="only 300 documents.*had read 400"):
        rows.take(1)
    rows = TextRows(tiny_model, [], 16)
    rows.seek([1000, 400, 3])
    with pytest.raises(TrainingError, match="only 0 documents"):
        rows.take(1)
