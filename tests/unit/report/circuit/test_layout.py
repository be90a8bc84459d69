from hypothesis import given
from hypothesis import strategies as st

from saekit.report.circuit.layout import LANE, TOKEN_HEIGHT, lay_out, strip_width

LEFT, RIGHT = 10.0, 500.0
words = st.text(alphabet="abcdef 日\n", min_size=1, max_size=20)


def boxes(strip):
    return [
        (b.x, strip.block_top(b), b.x + b.width, strip.block_top(b) + LANE - 7)
        for b in strip.blocks
    ] + [
        (c.x, strip.tops[c.line], c.x + c.width, strip.tops[c.line] + TOKEN_HEIGHT)
        for c in strip.cells
    ]


@given(
    st.lists(words, min_size=1, max_size=64),
    st.lists(st.tuples(words, st.integers(0, 63)), max_size=16),
)
def test_nothing_overlaps_and_nothing_leaves_the_strip(tokens, named):
    """Mutation tried: with every block in lane 0 this fails."""
    concepts = [
        (i, name, "layer 0-12", position % len(tokens) + 1)
        for i, (name, position) in enumerate(named)
    ]
    strip = lay_out(tokens, concepts, LEFT, RIGHT)
    assert len(strip.blocks) == len(concepts)
    drawn = boxes(strip)
    for i, (x0, y0, x1, y1) in enumerate(drawn):
        assert x0 >= LEFT - 0.01 and x1 <= RIGHT + 0.01
        assert y0 >= -0.01 and y1 <= strip.height
        for u0, v0, u1, v1 in drawn[:i]:
            assert x1 <= u0 + 0.01 or u1 <= x0 + 0.01 or y1 <= v0 + 0.01 or v1 <= y0 + 0.01


def test_the_seed_prompt_is_one_line():
    tokens = ["The", " opposite", " of", ' "', "large", '"', " is", ' "']
    strip = lay_out(tokens, [(0, "large", "layer 0-3", 5)], LEFT, RIGHT)
    assert {cell.line for cell in strip.cells} == {0}
    assert [cell.position for cell in strip.cells] == [1, 2, 3, 4, 5, 6, 7, 8]
    block, cell = strip.blocks[0], strip.cells[4]
    assert abs(block.x + block.width / 2 - cell.centre) < 1e-6
    assert strip_width(tokens) < RIGHT - LEFT


def test_concepts_of_one_token_are_stacked_in_order():
    strip = lay_out(["a", "b"], [(0, "x", "layer 0", 2), (1, "y", "layer 1-2", 2)], LEFT, RIGHT)
    assert [block.lane for block in strip.blocks] == [0, 1]


def test_no_tokens():
    assert lay_out([], [], LEFT, RIGHT).height == 0
