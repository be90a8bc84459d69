"""The circuit figure as one SVG string: a pure function of the circuit.

Left the attention maps of the whole model; in the middle the heads of the circuit over the token
strip with its concepts; at the right the target, the share the heads carry, its causal check and
the prediction.  Every number comes from the circuit through `saekit.wording`.
"""

from saekit.report.circuit import claims
from saekit.report.circuit.drawing import Drawing, palette_of
from saekit.report.circuit.layout import Strip, lay_out, strip_width
from saekit.report.circuit.panels import (
    draw_bubble,
    draw_causal,
    draw_dense,
    draw_heads,
    draw_predictions,
    draw_strip,
    draw_target,
)
from saekit.report.formatting import plain, shorten, span_text
from saekit.routes.circuit import Circuit
from saekit.wording import number, percent

WIDTH = 1120
MIN_HEIGHT = 510
_TOP = 46
_DENSE = (34, 344)  # left edge, size
_MIDDLE = (402, 420)  # left edge, width
_RIGHT = (846, 262)
_MARGIN = 12


def description(circuit: Circuit) -> str:
    """The figure in words, for readers who do not see it."""
    share = circuit.shown.share_positive
    parts = [
        f'Prompt "{circuit.prompt}".',
        claims.header(circuit) + ".",
        f"{claims.target_name(circuit)} modulated at {percent(share)}: "
        f"{claims.share_sentence(circuit)}.",
        *claims.causal_sentences(circuit),
    ]
    return plain(" ".join(parts))


def _footer(d: Drawing, circuit: Circuit, y: float) -> float:
    source = plain(circuit.dictionaries).rstrip("/").split("/")[-1]
    facts = [
        shorten(plain(circuit.prompt), 80),
        f"dictionaries {shorten(source, 30)}" if source else "",
        f"completeness error {number(circuit.completeness_error)}",
        f"error-node share {percent(circuit.error_node_share)}",
    ]
    d.text(_MARGIN, y + 12, "   |   ".join(filter(None, facts)), 12, d.palette.muted)
    return y + 20


def circuit_svg(circuit: Circuit, theme: str = "light") -> str:
    """Draw a circuit in theme "light", "dark" or "auto".

    The height grows beyond 510 where long prompts, many heads or many concepts need it.

    Raises:
        InputError: an unknown theme.
    """
    d = Drawing(palette_of(theme))
    tokens = circuit.tokens
    x, width = _MIDDLE
    dense_end = draw_dense(d, circuit, _DENSE[0], _TOP, _DENSE[1])
    heads_end = draw_heads(d, circuit, x, _TOP, width)

    rx, rwidth = _RIGHT
    bubble_end = draw_bubble(d, circuit, rx, _TOP, rwidth)
    target_top = max(bubble_end + 26, _TOP + 140)
    middle = rx + rwidth / 2
    level = (_TOP + min(heads_end, bubble_end)) / 2
    d.line([(x + width, level), (rx - 2, level)], d.palette.accent, 2, arrow=True)
    d.line([(middle, bubble_end), (middle, target_top - 2)], d.palette.accent, 2, arrow=True)
    right_end = draw_target(d, circuit, rx + 22, target_top, rwidth - 44)
    right_end = draw_causal(d, circuit, rx, right_end + 14, rwidth)
    right_end = draw_predictions(d, circuit, rx, right_end + 8, rwidth)

    concepts = [
        (place, concept.name, span_text(concept.span), concept.position)
        for place, concept in enumerate(circuit.concepts)
        if not claims.is_target(circuit, concept) and 1 <= concept.position <= len(tokens)
    ]
    concepts.sort(key=lambda item: (item[3], circuit.concepts[item[0]].span))
    beside = strip_width(tokens) <= width
    if beside:
        strip = lay_out(tokens, concepts, x, x + width)
        strip_top = max(heads_end + 40, _TOP + _DENSE[1] + 32 - strip.height)
        _edge_lines(d, circuit, strip, strip_top, heads_end)
    else:
        strip = lay_out(tokens, concepts, _MARGIN, WIDTH - _MARGIN)
        strip_top = max(dense_end, heads_end, right_end) + 24
    draw_strip(d, circuit, strip, strip_top)
    end = max(dense_end, right_end, strip_top + strip.height, MIN_HEIGHT - 34)
    height = _footer(d, circuit, end + 6) + 8
    return d.svg(WIDTH, max(height, MIN_HEIGHT), _title(circuit), description(circuit))


def _title(circuit: Circuit) -> str:
    return f"Circuit of {claims.target_name(circuit)}: {claims.header(circuit)}"


def _edge_lines(d: Drawing, circuit: Circuit, strip: Strip, top: float, heads_end: float) -> None:
    """From the key's stack of concepts up to the heads (only where strip and heads are close)."""
    key = circuit.key
    if not circuit.heads or not strip.cells:
        return
    cell = strip.cells[key - 1]
    own = [block for block in strip.blocks if block.line == cell.line]
    over = [b for b in own if b.position == key or b.x <= cell.centre <= b.x + b.width]
    start = top + (min(strip.block_top(b) for b in over) if over else strip.tops[cell.line])
    d.line(
        [(cell.centre, start - 2), (cell.centre, heads_end + 2)],
        d.palette.red_paint,
        1.6,
        arrow=True,
        dashed=True,
    )
    d.text(cell.centre + 7, (start + heads_end) / 2 + 4, f"key {key}", 12, d.palette.red_paint)
