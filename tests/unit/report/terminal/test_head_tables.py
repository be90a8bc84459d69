"""The terminal's heatmap and tables."""

import io

from rich.console import Console

from saekit.report.terminal.head_tables import VIRIDIS, colour, heatmap, render
from tests.unit.heads.samples import atlas


def shown(thing, width=120):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(thing)
    return console.file.getvalue()


def test_colours_run_through_viridis():
    assert colour(0) == VIRIDIS[0] == (68, 1, 84)
    assert colour(1) == colour(7) == VIRIDIS[-1]
    assert colour(0.5) == VIRIDIS[5]
    assert colour(0.05) == (70, 18, 100)  # half way between (68, 1, 84) and (72, 36, 117)


def test_rows_are_heads_and_columns_are_layers():
    scores = atlas()
    rows = str(heatmap(scores, scores.scores, "scores", "title")).splitlines()
    assert rows[0] == "title"
    assert [row.rstrip() for row in rows[1:4]] == ["   0 · ·", "   1 · 1•", "   2 2 9x"]
    assert rows[4].split() == ["0", "1"]
    right = str(heatmap(scores, scores.suppression, "suppression", "t")).splitlines()
    assert right[2].rstrip() == "   1 5x·"


def test_everything_that_was_measured_is_shown():
    text = shown(render(atlas()))
    for part in (
        "tiny: Name-Copying heads", "(Suppression)", "Share of 2 pairs", "constant head: 0.500",
        "Measured here", "L1-H2", "Mary, John", "L0-H1 suppresses", "forced 0.90", "natural n/a",
        "0.250", "0.900 (0.500 to 1.000)", "same token 100%", "' Mary'", "Note: a note",
    ):  # fmt: skip
        assert part in text, part
    bare = shown(render(atlas(classes=None, dynamic=None, causal=None, salient=None, hits=None)))
    assert "No classes are drawn" in bare and "Pearson" not in bare
