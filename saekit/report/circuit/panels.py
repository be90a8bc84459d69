"""The parts of the circuit figure: each draws itself at a place and returns where it ends."""

from saekit.coordinates import head_name
from saekit.report.circuit import claims
from saekit.report.circuit.drawing import Drawing
from saekit.report.circuit.layout import BLOCK_HEIGHT, LANE, TOKEN_HEIGHT, Strip
from saekit.report.circuit.mosaic import data_uri, mosaic, single_map
from saekit.report.formatting import plain, shorten, span_text, visible, wrap
from saekit.routes.circuit import Circuit
from saekit.wording import number, percent

_HEADS_A_ROW = 5
_DENSE_ROWS = 16  # ticks are thinned out above this many layers or heads


def edge_of(circuit: Circuit) -> tuple[int, int]:
    """(query, key) counted from 0."""
    return circuit.query - 1, circuit.key - 1


def quoted(token: str) -> str:
    """A token in quotation marks, spaces visible."""
    return f'"{visible(token)}"'


def draw_dense(d: Drawing, circuit: Circuit, x: float, y: float, size: float) -> float:
    """All attention maps of the model as one image; returns the lower edge."""
    patterns = circuit.patterns
    n_tokens = len(circuit.tokens)
    if not patterns or not patterns[0] or not n_tokens:
        d.text(x, y - 14, "Attention maps", 14, bold=True)
        d.rect(x, y, size, 84, fill=d.palette.field, stroke=d.palette.line, radius=4)
        why = "No attention maps are stored in this circuit: they are kept for prompts of up to "
        for i, line in enumerate(wrap(why + "64 tokens.", int(size / 7))):
            d.text(x + 12, y + 26 + 17 * i, line, 12, d.palette.muted)
        return y + 84
    n_layers, n_heads = len(patterns), len(patterns[0])
    edge = edge_of(circuit)
    image, block = mosaic(patterns, edge, d.palette.blue, d.palette.red)
    step = size / max(n_layers, n_heads)
    width, height = step * n_heads, step * n_layers
    model = shorten(plain(circuit.model).rstrip("/").split("/")[-1], 24)
    d.text(x, y - 14, f"{model}: attention of all {n_layers * n_heads} heads", 14, bold=True)
    d.rect(x, y, width, height, fill=d.palette.field)
    d.image(x, y, width, height, data_uri(image))
    shown = {(head.layer, head.index) for head in circuit.heads}
    for layer in range(n_layers):
        top = y + height - (layer + 1) * step
        for head in range(n_heads):
            left = x + head * step
            if (layer, head) in shown:
                d.rect(left, top, step, step, stroke=d.palette.ink, stroke_width=1.5)
            name = head_name(layer, head)
            weight = number(patterns[layer][head][edge[0]][edge[1]])
            title = f"{name}: attention {weight} from query pos {circuit.query} to key pos "
            title += str(circuit.key)
            d.hotspot(left, top, step, step, title, kind="head", head=name)
    every = 1 if max(n_layers, n_heads) <= _DENSE_ROWS else 4
    for layer in range(0, n_layers, every):
        middle = y + height - (layer + 0.5) * step + 3.5
        d.text(x - 6, middle, str(layer), 11, d.palette.muted, "end")
    for head in range(0, n_heads, every):
        d.text(x + (head + 0.5) * step, y + height + 13, str(head), 11, d.palette.muted, "middle")
    d.text(x, y + height + 30, "Head to the right, layer upwards; in each map", 12, d.palette.muted)
    line = f"key to the right, query upwards, blue = weight, red = {circuit.key} to {circuit.query}"
    d.text(x, y + height + 45, line, 12, d.palette.muted)
    if block > 1:
        pooled = f"Each cell: largest weight of {block} x {block} token pairs"
        d.text(x, y + height + 60, pooled, 12, d.palette.muted)
    return y + height + (45 if block == 1 else 60)


def draw_heads(d: Drawing, circuit: Circuit, x: float, y: float, width: float) -> float:
    """The circuit's heads, each with its map and share; returns the lower edge of the frame."""
    heads = circuit.heads
    edge = edge_of(circuit)
    in_set = set(circuit.set.heads)
    rows = max(1, -(-len(heads) // (_HEADS_A_ROW if len(heads) <= 10 else 8)))
    a_row = max(_HEADS_A_ROW if len(heads) <= 10 else 8, 1)
    column = (width - 16) / a_row
    side = min(column - 12, 72)
    row_height = side + 38
    d.text(x, y - 14, claims.header(circuit), 14, bold=True)
    height = rows * row_height + 10 if heads else 60
    d.rect(x, y, width, height, fill=d.palette.field, stroke=d.palette.line, radius=6)
    if not heads:
        d.text(x + 12, y + 34, "No positive contribution over any edge.", 12, d.palette.muted)
    for count, head in enumerate(heads):
        row, place = divmod(count, a_row)
        in_row = min(a_row, len(heads) - row * a_row)
        middle = x + width / 2 + (place - (in_row - 1) / 2) * column
        left, top = middle - side / 2, y + 22 + row * row_height
        name = head.head
        small = 12 if side > 50 else 10
        d.text(middle, top - 6, name, small, anchor="middle", bold=name in in_set)
        d.rect(left, top, side, side, fill=d.palette.background)
        pattern = claims.head_pattern(circuit, head.layer, head.index)
        if pattern is not None:
            image = single_map(pattern, edge, d.palette.blue, d.palette.red)
            d.image(left, top, side, side, data_uri(image))
            cell = side / len(pattern)
            row_top = top + side - circuit.query * cell
            d.rect(left + edge[1] * cell, row_top, cell, cell, stroke=d.palette.red_paint)
        else:
            d.text(middle, top + side / 2 - 3, "attention", 9.5, d.palette.muted, "middle")
            d.text(middle, top + side / 2 + 11, number(head.attention), 12, None, "middle")
        d.rect(left, top, side, side, stroke=d.palette.line)
        d.text(middle, top + side + 13, percent(head.share), small, None, "middle")
        title = (
            f"{name}: attention {number(head.attention)}, contribution "
            f"{number(head.contribution)}, attribution share {percent(head.share)}, "
            f"drop when this edge alone is removed {number(head.causal)}"
        )
        d.hotspot(left - 4, top - 18, side + 8, side + 34, title, kind="head", head=name)
    return y + height


def draw_strip(d: Drawing, circuit: Circuit, strip: Strip, y: float) -> None:
    """Tokens with 1-based positions, concept blocks above them."""
    query, key = circuit.query, circuit.key
    tokens = circuit.tokens
    for block in strip.blocks:
        cell = strip.cells[block.position - 1]
        bottom = y + strip.tops[block.line]
        hidden = {  # lanes where another block stands on the way down to the token
            other.lane
            for other in strip.blocks
            if other.line == block.line
            and other.lane < block.lane
            and other.x <= cell.centre <= other.x + other.width
        }
        gap = LANE - BLOCK_HEIGHT
        for lane in range(block.lane + 1):
            length = gap if lane in hidden or lane == block.lane else LANE
            lower = bottom - lane * LANE
            d.line([(cell.centre, lower - length), (cell.centre, lower)], d.palette.line, 1.2)
    for block in strip.blocks:
        concept = circuit.concepts[block.concept]
        top = y + strip.block_top(block)
        marked = d.palette.red_paint if block.position == key else d.palette.line
        d.rect(block.x, top, block.width, BLOCK_HEIGHT, d.palette.field, marked, 1.2, 5)
        middle = block.x + block.width / 2
        d.text(middle, top + 14.5, block.name, 12.5, anchor="middle", bold=True)
        d.text(middle, top + 28, block.span, 12, d.palette.muted, "middle")
        features = ", ".join(concept.features) or "no features listed"
        title = f"{concept.name} ({concept.kind}) at position "
        title += f"{block.position}, {block.span}; features {features}"
        name = concept.name
        d.hotspot(block.x, top, block.width, BLOCK_HEIGHT, title, kind="concept", concept=name)
    for cell in strip.cells:
        top = y + strip.tops[cell.line]
        chosen = cell.position in (query, key)
        stroke = d.palette.red_paint if chosen else d.palette.line
        d.rect(
            cell.x, top, cell.width, TOKEN_HEIGHT, d.palette.field, stroke, 2 if chosen else 1, 3
        )
        baseline = top + TOKEN_HEIGHT / 2 + strip.font * 0.35
        d.text(cell.centre, baseline, cell.text, strip.font, anchor="middle", mono=True)
        paint = d.palette.red_paint if chosen else d.palette.muted
        label = str(cell.position)
        d.text(cell.centre, top + TOKEN_HEIGHT + 14, label, 12, paint, "middle", bold=chosen)
        role = {query: " (query)", key: " (key)"}.get(cell.position, "")
        if cell.position == query == key:
            role = " (query and key)"
        title = f"Position {cell.position}: {quoted(tokens[cell.position - 1])}{role}"
        height = TOKEN_HEIGHT + 18
        d.hotspot(cell.x, top, cell.width, height, title, kind="token", position=cell.position)


def draw_target(d: Drawing, circuit: Circuit, x: float, y: float, width: float) -> float:
    """The target's block; returns its lower edge."""
    target = circuit.target
    name = shorten(claims.target_name(circuit), 24)
    layer = span_text([target.layer])
    d.rect(x, y, width, 44, d.palette.accent_field, d.palette.accent, 1.5, 6)
    d.text(x + width / 2, y + 19, name, 14, anchor="middle", bold=True)
    d.text(x + width / 2, y + 36, f"{layer}, position {target.position}", 12, anchor="middle")
    title = f"Target {claims.target_name(circuit)}: feature {target.feature}, "
    title += f"pre-activation {number(target.preactivation)}"
    d.hotspot(x, y, width, 44, title, kind="target", concept=target.concept)
    return y + 44


def draw_bubble(d: Drawing, circuit: Circuit, x: float, y: float, width: float) -> float:
    """The attribution share and what it is a share of; returns the lower edge."""
    share = circuit.shown.share_positive
    lines = wrap(claims.share_sentence(circuit), int((width - 16) / 6.6))
    height = 44 + 15 * len(lines)
    d.rect(x, y, width, height, d.palette.field, d.palette.line, 1.2, 16)
    name = shorten(claims.target_name(circuit), 14)
    middle = x + width / 2
    d.text(middle, y + 28, f"{name} modulated at {percent(share)}", 16, None, "middle", bold=True)
    for i, line in enumerate(lines):
        d.text(middle, y + 47 + 15 * i, line, 12, d.palette.muted, "middle")
    d.hotspot(x, y, width, height, claims.SHARE_POSITIVE, kind="share")
    return y + height


def draw_causal(d: Drawing, circuit: Circuit, x: float, y: float, width: float) -> float:
    """The causal shares beside the random-set baseline; returns the lower edge."""
    start = y
    for sentence in claims.causal_sentences(circuit):
        for line in wrap(sentence, int(width / 6.6)):
            d.text(x, y + 12, line, 12.5)
            y += 16
        y += 4
    d.hotspot(x, start, width, y - start, f"{claims.SHARE_CAUSAL} {claims.RANDOM_SETS}")
    return y


def draw_predictions(d: Drawing, circuit: Circuit, x: float, y: float, width: float) -> float:
    """The most probable next tokens as bars; returns the lower edge."""
    predictions = circuit.prediction[:5]
    if not predictions:
        return y
    d.text(x, y + 12, "Next token", 12.5, bold=True)
    y += 20
    name_width, number_width = 92.0, 44.0
    room = width - name_width - number_width
    for item in predictions:
        text = shorten(quoted(item.token), 12)
        d.text(x, y + 11, text, 12, mono=True)
        length = max(1.0, room * min(max(item.probability, 0.0), 1.0))
        d.rect(x + name_width, y + 2, length, 11, fill=d.palette.blue_paint)
        d.text(x + width, y + 11, percent(item.probability), 12, None, "end")
        title = f"{quoted(item.token)}: probability {percent(item.probability)}"
        d.hotspot(x, y, width, 15, title)
        y += 17
    return y
