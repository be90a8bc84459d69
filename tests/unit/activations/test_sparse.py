"""Sparse activations: what is kept of a batch, and reading by feature."""

import numpy as np
import torch

from saekit.activations import sparse
from saekit.activations.sparse import SparseRows

VALUES = torch.tensor([[2.0, 0.0], [1.0, 3.0], [4.0, 5.0]])
FEATURES = torch.tensor([[1, 0], [0, 3], [2, 1]])


def collected(counted=None):
    rows = SparseRows()
    rows.add(VALUES[:2], FEATURES[:2], None if counted is None else counted[:2])
    more = SparseRows()
    more.add(VALUES[2:], FEATURES[2:], None if counted is None else counted[2:])
    rows.extend(more)
    return rows


def test_a_matrix_by_hand():
    # mutation tried: `values >= 0` keeps the zero at position 0 and the counts fail
    matrix = collected().matrix(5)
    expected = [[0, 2, 0, 0, 0], [1, 0, 0, 3, 0], [0, 5, 4, 0, 0]]
    assert matrix.toarray().tolist() == expected
    assert sparse.counts(matrix).tolist() == [1, 2, 1, 1, 0]
    assert sparse.starts(matrix).tolist() == [0, 1, 3, 4, 5, 5]
    assert sparse.positions(matrix).tolist() == [1, 0, 2, 2, 1]
    assert sparse.values(matrix).tolist() == [1, 2, 5, 4, 3]
    assert sparse.features(matrix).tolist() == [0, 1, 1, 2, 3]
    assert sparse.n_positions(matrix) == 3


def test_positions_that_do_not_count_stay_as_empty_rows():
    matrix = collected(torch.tensor([True, False, True])).matrix(5)
    assert matrix.toarray().tolist() == [[0, 2, 0, 0, 0], [0] * 5, [0, 5, 4, 0, 0]]


def test_pieces_are_dropped_with_the_matrix():
    rows = collected()
    rows.matrix(5)
    rows.add(VALUES[:1], FEATURES[:1])
    assert np.array_equal(rows.matrix(5).toarray(), [[0, 2, 0, 0, 0]])
