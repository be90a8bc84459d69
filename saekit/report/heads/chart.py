"""The two heatmaps as an altair chart, and as SVG, PNG or HTML that needs no network.  No torch.

Layer on x, head on y, viridis from 0 to 1 in both panels, classes drawn over the cells: x for
those that act, dots for backups.  Each panel has its own legend with the source of its classes.
"""

from typing import Any

import altair as alt
import vl_convert

from saekit.coordinates import head_name
from saekit.heads.classes import HeadClasses
from saekit.heads.grids import Grid
from saekit.heads.scores import HeadScores
from saekit.report.heads.titles import how_measured, panel_titles

CELL = 26  # pixels
# Both are strokes, so that legends (which fill no stroked shape) look like the cells: the dot is
# two rings, one in the other.
SHAPES = {
    "x": "M-1,-1L1,1M1,-1L-1,1",
    "dot": "M-.6,0A.6,.6,0,1,1,.6,0A.6,.6,0,1,1,-.6,0"
    "M-.12,0A.12,.12,0,1,1,.12,0A.12,.12,0,1,1,-.12,0",
}
PNG_SCALE = 2
_MARK = "#d62728"
_WRAP = 140  # characters of the line under the chart


def _rows(scores: HeadScores, grid: Grid, null: Grid) -> list[dict[str, object]]:
    return [
        {
            "head": head_name(layer, head),
            "layer": layer,
            "index": head,
            "score": round(float(grid[layer, head]), 6),
            "null": round(float(null[layer, head]), 6),
            "class": ", ".join(scores.classes.of((layer, head))) if scores.classes else "",
        }
        for layer in range(scores.n_layers)
        for head in range(scores.n_heads)
    ]


def _marks(classes: HeadClasses, panel: str) -> Any:
    """Symbols of a panel: a dark one below and a bright one above, to be seen on any colour."""
    drawn = [c for c in classes.drawn if c.panel == panel]
    if not drawn:
        return None
    rows = [
        {"layer": layer, "index": head, "class": c.name, "head": head_name(layer, head)}
        for c in drawn
        for layer, head in c.heads
    ]
    base = alt.Chart(alt.Data(values=rows)).encode(
        x="layer:O",
        y="index:O",
        tooltip=[alt.Tooltip("head:N"), alt.Tooltip("class:N")],
    )
    names = [c.name for c in drawn]
    shape = alt.Shape(
        "class:N",
        scale=alt.Scale(domain=names, range=[SHAPES[c.mark] for c in drawn]),
        legend=alt.Legend(
            title=classes.title, orient="bottom", direction="horizontal", titleLimit=400,
            labelLimit=300, symbolStrokeColor=_MARK, symbolStrokeWidth=2.6, symbolSize=95,
        ),
    )  # fmt: skip
    below = base.mark_point(filled=False, size=95, strokeWidth=5.5, stroke="white", opacity=1)
    above = base.mark_point(filled=False, size=95, strokeWidth=2.6, stroke=_MARK, opacity=1)
    return alt.layer(below.encode(shape=shape), above.encode(shape=shape))


def _panel(scores: HeadScores, panel: str, title: str) -> Any:
    grid, null = (
        (scores.scores, scores.null_scores)
        if panel == "scores"
        else (scores.suppression, scores.null_suppression)
    )
    cells = (
        alt.Chart(alt.Data(values=_rows(scores, grid, null)))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, ticks=False)),
            y=alt.Y("index:O", title="head", axis=alt.Axis(ticks=False)),
            color=alt.Color(
                "score:Q",
                scale=alt.Scale(scheme="viridis", domain=[0, 1], clamp=True),
                legend=alt.Legend(title="score", gradientLength=CELL * scores.n_heads - 30),
            ),
            tooltip=[
                alt.Tooltip("head:N"),
                alt.Tooltip("score:Q", format=".3f"),
                alt.Tooltip("null:Q", format=".3f", title="shuffled targets, 95%"),
                alt.Tooltip("class:N"),
            ],
        )
    )
    marks = _marks(scores.classes, panel) if scores.classes else None
    layers = [cells] if marks is None else [cells, marks]
    return (
        alt.layer(*layers)
        .resolve_scale(shape="independent")
        .properties(
            width=CELL * scores.n_layers,
            height=CELL * scores.n_heads,
            title=alt.Title(title, anchor="middle", fontSize=14),
        )
    )


def _wrapped(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > _WRAP:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def atlas_chart(scores: HeadScores) -> alt.HConcatChart:
    """Both heatmaps side by side, with what was measured written below."""
    left, right = (
        _panel(scores, panel, title)
        for panel, title in zip(("scores", "suppression"), panel_titles(scores), strict=True)
    )
    below = how_measured(scores)
    if scores.classes:
        below += f" Classes: {scores.classes.source}."
    note = alt.Title(
        _wrapped(below), orient="bottom", anchor="start", fontSize=10.5, fontWeight="normal",
        color="#555555", offset=14, lineHeight=14,
    )  # fmt: skip
    return (
        alt.hconcat(left, right, spacing=36)
        .resolve_scale(color="shared", shape="independent")
        .resolve_legend(shape="independent")
        .properties(title=note)
        .configure_view(stroke=None)
        .configure_axis(domain=False, labelFontSize=11, titleFontSize=12)
        .configure_legend(labelFontSize=11, titleFontSize=11)
    )


def _specification(scores: HeadScores) -> dict[str, object]:
    return atlas_chart(scores).to_dict()


def _version() -> str:
    """Vega-Lite's version as vl-convert names it, such as 6.4."""
    return ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def atlas_svg(scores: HeadScores) -> str:
    """The chart as SVG."""
    return vl_convert.vegalite_to_svg(_specification(scores), vl_version=_version())


def atlas_png(scores: HeadScores) -> bytes:
    """The chart as PNG, two pixels per unit."""
    return vl_convert.vegalite_to_png(
        _specification(scores), vl_version=_version(), scale=PNG_SCALE
    )


def atlas_html(scores: HeadScores) -> str:
    """One HTML file with its scripts inside, with tooltips; opens without a network."""
    return vl_convert.vegalite_to_html(_specification(scores), vl_version=_version(), bundle=True)
