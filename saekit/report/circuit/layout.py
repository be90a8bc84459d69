"""Where tokens and concept blocks go: plain geometry, in the units of the figure.

Tokens fill lines from left to right.  The concepts of a line are stacked above it in lanes, so that
no two blocks overlap.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len

from saekit.report.formatting import plain, shorten, visible

TOKEN_HEIGHT = 26
BLOCK_HEIGHT = 34
LANE = BLOCK_HEIGHT + 7
_BLOCK_GAP = 8
_TOKEN_GAP = 4
_NUMBER_HEIGHT = 16  # the position under each token
_LINE_GAP = 14
_ADVANCE = 0.602  # width of a monospace character, of its size
_SANS_ADVANCE = 0.58  # widest plausible average of the sans fonts the figure falls back on
_LONG = 24  # from this many tokens on, text is smaller and cut earlier
BLOCK_NAME_LIMIT = 20


@dataclass
class Cell:
    """One token of the strip."""

    position: int
    text: str
    x: float
    width: float
    line: int

    @property
    def centre(self) -> float:
        return self.x + self.width / 2


@dataclass
class Block:
    """One concept over its token; `lane` 0 is nearest to the tokens."""

    concept: int
    name: str
    span: str
    position: int
    x: float
    width: float
    line: int
    lane: int = 0


@dataclass
class Strip:
    """Tokens, blocks, and the top of each line's token cells (relative to the strip)."""

    cells: list[Cell]
    blocks: list[Block]
    font: float
    tops: list[float] = field(default_factory=list)
    height: float = 0

    def block_top(self, block: Block) -> float:
        """Upper edge of a block, relative to the strip."""
        return self.tops[block.line] - (block.lane + 1) * LANE


def token_cells(tokens: Sequence[str], left: float, right: float) -> tuple[list[Cell], float]:
    """Cells of all tokens between two edges, wrapped, and the size of their text."""
    font, limit = (13.0, 14) if len(tokens) < _LONG else (11.0, 10)
    cells: list[Cell] = []
    x, line = left, 0
    for position, token in enumerate(tokens, start=1):
        text = shorten(visible(token), limit)
        width = max(24.0, 10 + _ADVANCE * font * cell_len(text))
        if x + width > right and x > left:
            x, line = left, line + 1
        cells.append(Cell(position, text, x, width, line))
        x += width + _TOKEN_GAP
    return cells, font


def _overlap(x: float, width: float, other: Block) -> bool:
    return x < other.x + other.width + _BLOCK_GAP and other.x < x + width + _BLOCK_GAP


def stack(blocks: list[Block], cells: Sequence[Cell]) -> None:
    """Give each block the lowest lane where it overlaps no other block of its line.

    A block goes above the lanes whose blocks of *other* tokens would hide the line down to its own
    token, and blocks of one token keep their order (lower layers nearer to the token).
    """
    placed: list[Block] = []
    for block in blocks:
        centre = cells[block.position - 1].centre
        lane = 0
        neighbours = [other for other in placed if other.line == block.line]
        for other in neighbours:
            if other.position == block.position:
                lane = max(lane, other.lane + 1)
        while any(_overlap(block.x, block.width, o) for o in neighbours if o.lane == lane):
            lane += 1
        hidden = [
            other.lane
            for other in neighbours
            if other.position != block.position and other.lane > lane and _overlap(centre, 0, other)
        ]
        if hidden:
            lane = max(hidden) + 1
            while any(_overlap(block.x, block.width, o) for o in neighbours if o.lane == lane):
                lane += 1
        block.lane = lane
        placed.append(block)


def lay_out(
    tokens: Sequence[str],
    concepts: Sequence[tuple[int, str, str, int]],
    left: float,
    right: float,
) -> Strip:
    """Place tokens and concepts (number, name, span text, position) between two edges."""
    cells, font = token_cells(tokens, left, right)
    blocks = []
    for number, name, span, position in concepts:
        cell = cells[position - 1]
        shown = shorten(plain(name), BLOCK_NAME_LIMIT)
        text = max(12.5 * cell_len(shown), 12 * cell_len(span)) * _SANS_ADVANCE
        width = max(cell.width, text + 14)
        x = min(max(cell.centre - width / 2, left), max(right - width, left))
        blocks.append(Block(number, shown, span, position, x, width, cell.line))
    stack(blocks, cells)
    strip = Strip(cells, blocks, font)
    y = 0.0
    for line in range(cells[-1].line + 1 if cells else 0):
        lanes = max((b.lane + 1 for b in blocks if b.line == line), default=0)
        y += lanes * LANE
        strip.tops.append(y)
        y += TOKEN_HEIGHT + _NUMBER_HEIGHT + _LINE_GAP
    strip.height = y
    return strip


def strip_width(tokens: Sequence[str]) -> float:
    """Width that all tokens would take on one line."""
    cells, _ = token_cells(tokens, 0, float("inf"))
    return cells[-1].x + cells[-1].width if cells else 0.0
