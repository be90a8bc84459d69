import pytest

from saekit.concepts.spans import _run, longest_run

ALL = list(range(13))


@pytest.mark.parametrize(
    ("present", "run"),
    [
        ([], None),
        ([4], (4, 4)),
        ([0, 1, 2], (0, 2)),
        ([0, 1, 3], (0, 3)),  # one missing layer
        ([0, 1, 4, 5, 6], (4, 6)),  # two missing layers end a run
        ([1, 2, 8, 9], (1, 2)),  # a tie goes to the earlier
        ([0, 2, 4, 6], (0, 4)),  # 4 of 7 layers are below 60%, 3 of 5 are not
        ([12], (12, 12)),
        ([0, 2], (0, 2)),
    ],
)
def test_longest_run(present, run):
    # Mutation tried: MIN_SHARE 0.5 changes the row of every second layer to (0, 6).
    assert longest_run(present, ALL) == run


def test_missing_layers_are_counted_among_the_dictionaries():
    assert longest_run([0, 3, 6], [0, 3, 6, 9]) == (0, 6)
    assert longest_run([0, 6], [0, 3, 6, 9]) == (0, 6)
    assert longest_run([0, 9], [0, 3, 6, 9]) == (0, 0)


def test_weak_activity_extends_a_span_but_does_not_make_one():
    def rows(strong):
        return [{"strong": False}, {"strong": strong}]

    assert _run({0: rows(True), 1: rows(False), 2: rows(True)}, ALL) == (0, 2)
    assert _run({0: rows(True), 1: rows(False), 2: rows(False)}, ALL) == (0, 0)
    assert _run({0: rows(False), 1: rows(False)}, ALL) is None
    assert _run({}, ALL) is None
