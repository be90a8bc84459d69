"""The attention map of one head, large, with the tokens at its sides."""

from rich.cells import cell_len

from saekit.coordinates import head_name
from saekit.errors import InputError
from saekit.report.circuit import claims
from saekit.report.circuit.drawing import Drawing, palette_of
from saekit.report.circuit.mosaic import data_uri, single_map
from saekit.report.circuit.panels import edge_of, quoted
from saekit.report.formatting import shorten, visible
from saekit.routes.circuit import Circuit
from saekit.wording import number

_SIDE = 360.0
_LABEL = 12  # character cells of a token beside the map
_MONO_ADVANCE = 0.602
_MANY = 16  # from here on tokens get a cell too small for their text


def head_svg(circuit: Circuit, layer: int, index: int, theme: str = "light") -> str:
    """Draw one head's map, key to the right and query upwards; each cell tells its weight.

    Raises:
        InputError: there is no such head, or no maps are stored.
    """
    name = head_name(layer, index)
    pattern = claims.head_pattern(circuit, layer, index)
    if pattern is None:
        raise InputError(f"This circuit holds no attention map of {name}.")
    d = Drawing(palette_of(theme))
    tokens = [shorten(visible(token), _LABEL) for token in circuit.tokens]
    n = len(tokens)
    cell = _SIDE / n
    font = 12.0 if n <= _MANY else max(6.0, min(12.0, cell * 1.1))
    margin = 22 + font * _MONO_ADVANCE * max(map(cell_len, tokens))
    left, top = margin, 30.0
    edge = edge_of(circuit)
    d.text(left, 18, name, 14, bold=True)
    d.rect(left, top, _SIDE, _SIDE, fill=d.palette.field)
    image = single_map(pattern, edge, d.palette.blue, d.palette.red)
    d.image(left, top, _SIDE, _SIDE, data_uri(image))
    d.rect(left, top, _SIDE, _SIDE, stroke=d.palette.line)
    for place, token in enumerate(tokens):
        middle = top + _SIDE - (place + 0.5) * cell
        d.text(left - 6, middle + font * 0.35, token, font, anchor="end", mono=True)
        x = left + (place + 0.5) * cell + font * 0.35
        bottom = top + _SIDE + 8
        d.parts.append(f'<g transform="rotate(-90 {x:.1f} {bottom:.1f})">')
        d.text(x, bottom, token, font, anchor="end", mono=True)
        d.parts.append("</g>")
    for query in range(n):
        for key in range(query + 1):
            title = (
                f"{number(pattern[query][key])} from query pos {query + 1} "
                f"{quoted(circuit.tokens[query])} to key pos {key + 1} "
                f"{quoted(circuit.tokens[key])}"
            )
            d.hotspot(left + key * cell, top + _SIDE - (query + 1) * cell, cell, cell, title)
    d.text(4, top - 10, "query", 11, d.palette.muted)
    height = top + _SIDE + margin + 6
    d.text(left + _SIDE, height - 4, "key", 11, d.palette.muted, "end")
    title = f"Attention of {name}"
    return d.svg(left + _SIDE + 12, height, title, f"{title} over the prompt's tokens.")
