"""Colours of the themes and the few SVG elements the figure is made of.

Attributes are written inline: converters to PNG ignore the style sheet of the page.
"""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from saekit.errors import InputError
from saekit.report.formatting import xml

Theme = Literal["light", "dark", "auto"]
SANS = "Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
MONO = "'DejaVu Sans Mono', 'Liberation Mono', Menlo, Consolas, monospace"


class Paint(NamedTuple):
    """A colour and its opacity (of a fill or a stroke)."""

    colour: str
    opacity: float = 1.0


class Palette(NamedTuple):
    """The colours of one theme; blue and red also as numbers, for the attention maps."""

    background: Paint | None
    ink: Paint
    muted: Paint
    line: Paint
    field: Paint
    accent: Paint
    accent_field: Paint
    blue: tuple[int, int, int]
    red: tuple[int, int, int]

    @property
    def blue_paint(self) -> Paint:
        return Paint("#{:02x}{:02x}{:02x}".format(*self.blue))

    @property
    def red_paint(self) -> Paint:
        return Paint("#{:02x}{:02x}{:02x}".format(*self.red))


# Contrast of ink and muted text on the background is at least 4.5 to 1 in each theme.  Blue and red
# stay apart for colour-blind readers; the red things also carry an outline.
PALETTES: dict[str, Palette] = {
    "light": Palette(
        background=Paint("#ffffff"),
        ink=Paint("#1a202c"),
        muted=Paint("#566072"),
        line=Paint("#c3cad5"),
        field=Paint("#f1f4f9"),
        accent=Paint("#8a5200"),
        accent_field=Paint("#fdf0d9"),
        blue=(29, 84, 196),
        red=(205, 35, 40),
    ),
    "dark": Palette(
        background=Paint("#10141b"),
        ink=Paint("#e9edf4"),
        muted=Paint("#a3adbd"),
        line=Paint("#434c5b"),
        field=Paint("#1b222d"),
        accent=Paint("#f2bd62"),
        accent_field=Paint("#33281a"),
        blue=(106, 166, 255),
        red=(255, 100, 100),
    ),
    # For a page whose colours are not known: text in the page's own colour.
    "auto": Palette(
        background=None,
        ink=Paint("currentColor"),
        muted=Paint("currentColor", 0.72),
        line=Paint("currentColor", 0.3),
        field=Paint("currentColor", 0.06),
        accent=Paint("currentColor"),
        accent_field=Paint("#f0a020", 0.22),
        blue=(70, 138, 245),
        red=(228, 66, 66),
    ),
}


def palette_of(theme: str) -> Palette:
    """The colours of "light", "dark" or "auto" (`currentColor`, no background)."""
    if theme not in PALETTES:
        names = ", ".join(get_args(Theme))
        raise InputError(f'"{theme}" is not a theme of the figure; use one of {names}.')
    return PALETTES[theme]


def _paint(kind: str, paint: Paint | None) -> str:
    if paint is None:
        return f' {kind}="none"'
    opacity = "" if paint.opacity == 1 else f' {kind}-opacity="{paint.opacity:g}"'
    return f' {kind}="{paint.colour}"{opacity}'


def _attributes(**values: object) -> str:
    """`data_layer=3` becomes ` data-layer="3"`; None is left out."""
    return "".join(
        f' {name.rstrip("_").replace("_", "-")}="{xml(value)}"'
        for name, value in values.items()
        if value is not None
    )


@dataclass
class Drawing:
    """A growing list of SVG elements in one palette."""

    palette: Palette
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        content: str,
        size: float = 12,
        paint: Paint | None = None,
        anchor: str = "start",
        bold: bool = False,
        mono: bool = False,
    ) -> None:
        """One line of text; `y` is its baseline."""
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size:g}" text-anchor="{anchor}"'
            f' font-family="{MONO if mono else SANS}"{weight}'
            f'{_paint("fill", paint or self.palette.ink)} xml:space="preserve">'
            f"{xml(content)}</text>"
        )

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        fill: Paint | None = None,
        stroke: Paint | None = None,
        stroke_width: float = 1,
        radius: float = 0,
    ) -> None:
        outline = f' stroke-width="{stroke_width:g}"' if stroke else ""
        corner = f' rx="{radius:g}"' if radius else ""
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{corner}'
            f"{_paint('fill', fill)}{_paint('stroke', stroke)}{outline}/>"
        )

    def line(
        self,
        points: list[tuple[float, float]],
        stroke: Paint,
        width: float = 1.5,
        arrow: bool = False,
        dashed: bool = False,
    ) -> None:
        """A polyline; `arrow` puts a head at its end, in the direction of the last segment."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="4 3"' if dashed else ""
        self.parts.append(
            f'<polyline points="{path}" fill="none" stroke-width="{width:g}"{dash}'
            f"{_paint('stroke', stroke)}/>"
        )
        if arrow:
            (x0, y0), (x1, y1) = points[-2:]
            length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1e-6)
            dx, dy = 8 * (x1 - x0) / length, 8 * (y1 - y0) / length
            corners = f"{x1:.1f},{y1:.1f} {x1 - dx - dy / 2:.1f},{y1 - dy + dx / 2:.1f} "
            corners += f"{x1 - dx + dy / 2:.1f},{y1 - dy - dx / 2:.1f}"
            self.parts.append(f'<polygon points="{corners}"{_paint("fill", stroke)}/>')

    def image(self, x: float, y: float, width: float, height: float, uri: str) -> None:
        """A PNG with hard pixel edges."""
        self.parts.append(
            f'<image x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            f' preserveAspectRatio="none" image-rendering="pixelated"'
            f' style="image-rendering:pixelated" href="{uri}"/>'
        )

    def hotspot(
        self, x: float, y: float, width: float, height: float, title: str, **data: object
    ) -> None:
        """A transparent rectangle over something small: its tooltip and what a click means."""
        names = {f"data_{name}": value for name, value in data.items()}
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
            f' fill="#000000" fill-opacity="0"{_attributes(**names)}>'
            f"<title>{xml(title)}</title></rect>"
        )

    def svg(self, width: float, height: float, title: str, description: str) -> str:
        """The finished document (no `<title>`: browsers show it as a tooltip everywhere)."""
        background = Drawing(self.palette)
        if self.palette.background is not None:
            background.rect(0, 0, width, height, fill=self.palette.background)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}"'
            f' width="{width:g}" height="{height:g}" role="img"'
            f' aria-label="{xml(title)}">'
            f"<desc>{xml(description)}</desc>" + "".join(background.parts + self.parts) + "</svg>"
        )
