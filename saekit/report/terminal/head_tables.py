"""The atlas for people in a shell: both heatmaps in colour, and tables.  No torch."""

from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from saekit.coordinates import head_name
from saekit.heads.grids import Grid
from saekit.heads.scores import HeadScores
from saekit.report.heads.titles import how_measured, panel_titles

# Eleven colours of matplotlib's viridis, at 0, 0.1, ... 1.
VIRIDIS = (
    (68, 1, 84), (72, 36, 117), (65, 68, 135), (53, 95, 141), (42, 120, 142), (33, 145, 140),
    (34, 168, 132), (68, 191, 112), (122, 209, 81), (189, 223, 38), (253, 231, 37),
)  # fmt: skip
SYMBOLS = {"x": "x", "dot": "•"}
SALIENT_ROWS = 12


def colour(score: float) -> tuple[int, int, int]:
    """The viridis colour of a score in [0, 1], linear between the eleven."""
    place = min(max(score, 0.0), 1.0) * (len(VIRIDIS) - 1)
    low = min(int(place), len(VIRIDIS) - 2)
    part = place - low
    one, two = VIRIDIS[low], VIRIDIS[low + 1]
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(one, two, strict=True))
    return red, green, blue


def heatmap(scores: HeadScores, grid: Grid, panel: str, title: str) -> Text:
    """One panel as text: a row per head, two characters per layer, marks of the classes.

    Without colours (a file, a pipe) the digits 1 to 9 stand for tenths, a dot for less.
    """
    drawn = scores.classes.drawn if scores.classes else []
    marks = {h: SYMBOLS[c.mark] for c in drawn if c.panel == panel for h in c.heads}
    text = Text(f"{title}\n", style="bold")
    for head in range(scores.n_heads):
        text.append(f"{head:>4} ", style="not bold dim")
        for layer in range(scores.n_layers):
            score = float(grid[layer, head])
            background = colour(score)
            ink = "black" if sum(background) > 380 else "white"
            tenths = min(int(score * 10), 9)
            cell = f"{tenths or '·'}{marks.get((layer, head), ' ')}"
            text.append(cell, style=f"not bold {ink} on rgb({','.join(map(str, background))})")
        text.append("\n")
    text.append(
        "     " + "".join(f"{layer:<2}" for layer in range(scores.n_layers)), "not bold dim"
    )
    return text


def _top_table(scores: HeadScores) -> Table:
    table = Table(box=None, pad_edge=False, title="highest heads", title_justify="left")
    for name in ("head", "score", "null 95%", "maps", "classes"):
        table.add_column(name, justify="right" if name in ("score", "null 95%") else "left")
    for suppression in (False, True):
        null = scores.null_suppression if suppression else scores.null_scores
        for head, score in scores.top_heads(6, suppression):
            words = ""
            if scores.hits is not None:
                pairs = scores.words_of(*head, suppressed=suppression)
                words = ", ".join(a if a == b else f"{a}→{b}" for a, b in pairs[:5])
            table.add_row(
                head_name(*head) + (" suppresses" if suppression else ""),
                f"{score:.3f}",
                f"{null[head]:.3f}",
                words + (" …" if words and score * scores.n_pairs > 5.5 else ""),
                "; ".join(scores.classes.of(head)) if scores.classes else "",
            )
    return table


def _legend(scores: HeadScores) -> Text:
    if scores.classes is None:
        return Text("No classes are drawn: none were published or measured for this model.")
    marks = ", ".join(
        f"{SYMBOLS[c.mark]} {c.name} ({'left' if c.panel == 'scores' else 'right'}: "
        f"{', '.join(head_name(*head) for head in c.heads) or 'none'})"
        for c in scores.classes.drawn
    )
    return Text(f"{scores.classes.title}: {marks}\n{scores.classes.source}", style="dim")


def _dynamic_line(scores: HeadScores) -> list[RenderableType]:
    if scores.dynamic is None:
        return []
    shown = ", ".join(
        f"{name.replace('_', ' ')} {'n/a' if r is None else f'{r:.2f}'}"
        for name, r in scores.dynamic.correlation.items()
    )
    return [Text(f"Pearson r over heads, static against what heads write on prompts: {shown}")]


def _causal_table(scores: HeadScores) -> list[RenderableType]:
    if scores.causal is None:
        return []
    table = Table(box=None, pad_edge=False, title=scores.causal.what, title_justify="left")
    for name in ("heads removed", "accuracy", "random heads (mean, range)"):
        table.add_column(name)
    for row in scores.causal.rows:
        low, high = row.random_range
        table.add_row(
            f"{row.n}: {', '.join(row.heads)}",
            f"{row.accuracy:.3f}",
            f"{row.random_mean:.3f} ({low:.3f} to {high:.3f})",
        )
    return [table]


def _salient_tables(scores: HeadScores) -> list[RenderableType]:
    tables: list[RenderableType] = []
    for one in scores.salient or []:
        counts = ", ".join(f"{name} {share:.0%}" for name, share in one.kinds.items())
        table = Table(box=None, pad_edge=False, title=f"{one.head}: {counts}", title_justify="left")
        for name in ("input", one.side, "kind"):
            table.add_column(name)
        for row in one.rows[:SALIENT_ROWS]:
            table.add_row(repr(row.input), "  ".join(map(repr, row.outputs)), row.kind)
        tables.append(table)
    return tables


def render(scores: HeadScores) -> RenderableType:
    """Heatmaps, legend, the highest heads and what was asked for beside them."""
    left, right = (
        heatmap(scores, grid, panel, title)
        for grid, panel, title in zip(
            (scores.scores, scores.suppression),
            ("scores", "suppression"),
            panel_titles(scores),
            strict=True,
        )
    )
    parts: list[RenderableType] = [
        Columns([left, right], padding=(0, 4)),
        Text(how_measured(scores)),
        _legend(scores),
        _top_table(scores),
        *_dynamic_line(scores),
        *_causal_table(scores),
        *_salient_tables(scores),
        *(Text(f"Note: {note}", style="dim") for note in scores.notes),
    ]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))
