"""The files of a report: circuit.json, circuit.svg, circuit.png and report.html."""

import logging
from functools import cache
from pathlib import Path

from saekit.errors import InputError
from saekit.files import ensure_writable, write_bytes, write_text
from saekit.report.circuit.drawing import MONO, SANS
from saekit.report.circuit.svg import circuit_svg
from saekit.report.html import report_page
from saekit.routes.circuit import Circuit

PNG_WIDTH = 2400
_LOG = logging.getLogger(__name__)
_PROBE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 20 20">{}</svg>',
    '<text x="1" y="15" font-size="14" font-family="{}">A</text>',
)


def _render(svg: str, width: int) -> bytes:
    try:
        import resvg_py
    except ImportError as error:
        raise InputError(
            "Pictures in PNG form need the package resvg_py: install it with "
            "pip install resvg_py, or use the SVG."
        ) from error
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=width))


@cache
def fonts_found() -> bool:
    """Whether this system has a font that the PNG converter can draw the figure's letters with.

    Asked for the families that the figure names: the converter knows no generic "sans-serif".
    """
    page, letter = _PROBE
    empty = _render(page.format(""), 20)
    return all(_render(page.format(letter.format(family)), 20) != empty for family in (SANS, MONO))


def png_problem() -> str | None:
    """Why no PNG can be made on this system, in one sentence; None if it can."""
    try:
        if fonts_found():
            return None
    except InputError as error:
        return str(error)
    return (
        "No font of the figure (DejaVu, Liberation, Arial, Menlo ...) was found on this system, so "
        "the PNG would have no text: install the package fonts-dejavu-core, or use the SVG."
    )


def circuit_png(circuit: Circuit, theme: str = "light", width: int = PNG_WIDTH) -> bytes:
    """The figure as PNG, `width` pixels wide, drawn with the system's fonts.

    Raises:
        InputError: the converter is not installed, or the system has no font (the picture would
            come out without a word).
    """
    problem = png_problem()
    if problem:
        raise InputError(problem)
    return _render(circuit_svg(circuit, theme), width)


def write_report(circuit: Circuit, out: str | Path) -> list[Path]:
    """Write circuit.json, circuit.svg, circuit.png and report.html into the folder `out`.

    Where a PNG cannot be made (no converter, no font) the other three are written and one sentence
    is logged.

    Returns:
        The paths written.

    Raises:
        InputError: the folder cannot be written.
    """
    folder = ensure_writable(out)
    texts = {
        "circuit.json": circuit.to_json(),
        "circuit.svg": circuit_svg(circuit, "light"),
        "report.html": report_page(circuit),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    written = [folder / name for name in texts]
    problem = png_problem()
    if problem:
        _LOG.warning("circuit.png was not written: %s", problem)
        return written
    picture = circuit_png(circuit)
    write_bytes(folder / "circuit.png", picture)
    return [*written, folder / "circuit.png"]
