"""Documents to rows: hand-made rows, and that no token is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from saekit.errors import InputError
from saekit.text.packing import Place, encode_documents, pack, pack_rows

BOS = 0
ROWS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]


def encode(texts):
    return [[int(word) for word in text.split()] for text in texts]


def rows(documents, context, **options):
    """`pack` with documents given as their token ids."""
    texts = [" ".join(map(str, ids)) for ids in documents]
    return [row.tolist() for row in pack(texts, encode, context, BOS, **options)]


def test_split_continues_in_the_next_row():
    assert rows(ROWS, 5) == [[0, 1, 2, 3, 0], [0, 4, 0, 5, 6]]  # 7, 8, 9 do not fill a row
    assert rows([*ROWS, [1]], 5)[2:] == [[0, 7, 8, 9, 0]]


def test_without_split_each_row_starts_with_a_new_document():
    assert rows(ROWS, 4, split=False) == [[0, 1, 2, 3], [0, 4, 0, 5]]
    assert rows(ROWS, 5, split=False) == [[0, 1, 2, 3, 0], [0, 5, 6, 7, 8]]


def test_without_bos_in_front():
    assert rows(ROWS, 4, prepend_bos=False) == [[1, 2, 3, 0], [4, 0, 5, 6]]


def test_empty_documents_leave_no_mark():
    assert rows([[], *ROWS, []], 5) == rows(ROWS, 5)


@pytest.mark.parametrize(("context", "prepend_bos"), [(1, True), (0, False)])
def test_context_without_room(context, prepend_bos):
    with pytest.raises(InputError, match="too short"):
        rows(ROWS, context, prepend_bos=prepend_bos)


documents = st.lists(st.lists(st.integers(1, 99), max_size=30), max_size=20)


@given(documents, st.integers(2, 12), st.booleans())
def test_no_token_is_lost(texts, context, prepend_bos):
    """Mutation tried: `row[context:]` replaced by `[]` fails here."""
    packed = rows(texts, context, prepend_bos=prepend_bos)
    assert all(len(row) == context for row in packed)
    assert not prepend_bos or all(row[0] == BOS for row in packed)
    got = [token for row in packed for token in row if token != BOS]
    every = [token for text in texts for token in text]
    assert got == every[: len(got)]
    assert len(every) - len(got) < context


@given(documents, st.integers(2, 12))
def test_without_split_rows_are_beginnings_of_documents(texts, context):
    for row in rows(texts, context, split=False):
        first = row[1 : row.index(BOS, 1) if BOS in row[1:] else None]
        assert any(text[: len(first)] == first for text in texts)


def test_documents_are_encoded_in_batches_and_in_order():
    sizes = []

    def encode(batch):
        sizes.append(len(batch))
        return [[len(text)] for text in batch]

    got = list(encode_documents(("x" * i for i in range(600)), encode))
    assert got == [[i] for i in range(600)]
    assert sizes == [256, 256, 88]


def test_ids_pass_as_they_are_and_bos_separates_them():
    texts = [np.array([0, 1, 2, 0, 0, 3]), "4 5", np.array([6])]
    packed = [row.tolist() for row in pack(texts, encode, 4, BOS)]
    assert packed == [[0, 1, 2, 0], [0, 3, 0, 4], [0, 5, 0, 6]]


def test_rows_know_their_documents_and_where_the_next_begins():
    texts = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6, 7, 8, 9, 1])]
    found = list(pack_rows(texts, encode, 5, BOS))
    assert [row.ids.tolist() for row in found] == [
        [0, 1, 2, 3, 0],
        [0, 4, 0, 5, 6],
        [0, 7, 8, 9, 1],
    ]
    assert [row.documents.tolist() for row in found] == [[0] * 4 + [1], [1, 1, 2, 2, 2], [2] * 5]
    assert [row.end for row in found] == [Place(1, 0), Place(2, 2), Place(2, 6)]


@given(documents, st.integers(2, 12), st.booleans(), st.data())
def test_rows_continue_from_any_place(texts, context, prepend_bos, data):
    arrays = [np.array(text, dtype=int) for text in texts]
    found = list(pack_rows(arrays, encode, context, BOS, prepend_bos))
    if not found:
        return
    cut = data.draw(st.integers(0, len(found) - 1))
    start = found[cut].end
    rest = pack_rows(arrays[start.document :], encode, context, BOS, prepend_bos, start=start)
    for one, other in zip(rest, found[cut + 1 :], strict=True):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.documents.tolist() == other.documents.tolist()
        assert one.end == other.end
