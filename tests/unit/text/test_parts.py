from itertools import cycle, islice

import numpy as np

from saekit.text import relational
from saekit.text.parts import CHOOSE, INDEX, REPORT, new_pieces, only_parts, part_of, pieces


def test_pieces_are_the_whole_text():
    text = " ".join(str(n) for n in range(2000))
    assert "".join(pieces(text)) == text
    assert max(map(len, pieces(text))) <= 2000
    assert list(pieces("x" * 4100)) == ["x" * 2000, "x" * 2000, "x" * 100]
    ids = np.arange(1200)
    assert [len(piece) for piece in pieces(ids)] == [500, 500, 200]
    assert np.concatenate(list(pieces(ids))).tolist() == ids.tolist()


def test_parts_share_no_text_and_leave_none_out():
    documents = list(islice(relational.documents(seed=1), 200))
    parts = [list(only_parts(documents, wanted)) for wanted in (INDEX, CHOOSE, REPORT)]
    assert all(parts)
    assert sorted(sum(parts, [])) == sorted(documents)
    assert not set(parts[0]) & set(parts[1] + parts[2]) and not set(parts[1]) & set(parts[2])


def test_a_part_is_decided_by_the_content():
    ids = np.array([3, 1, 2])
    assert part_of(ids) == part_of(ids.copy())
    assert {part_of(f"text {n}") for n in range(50)} == {0, 1, 2, 3}


def test_an_endless_text_that_repeats_itself_ends():
    assert list(new_pieces(cycle(["a", "b", "a"]))) == ["a", "b"]
