"""The report as one HTML page: the figure, all numbers in tables, and how each was measured.

No script, no file beside it, nothing loaded from a network; light or dark by the reader's system.
"""

from collections.abc import Iterable, Sequence

from saekit.report.circuit import claims
from saekit.report.circuit.circuit_tables import Table, tables
from saekit.report.circuit.svg import circuit_svg
from saekit.report.formatting import plain, xml
from saekit.routes.circuit import Circuit
from saekit.wording import number, percent

_STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --page: #ffffff; --muted: #566072;
  --line: #d5dae3; --field: #f1f4f9; }
@media (prefers-color-scheme: dark) { :root { --ink: #e9edf4; --page: #10141b; --muted: #a3adbd;
  --line: #39424f; --field: #1b222d; } }
body { margin: 0 auto; padding: 1.25rem .75rem; max-width: 1200px; color: var(--ink);
  background: var(--page); font: 15px/1.5 Helvetica, Arial, "Liberation Sans", sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { max-width: 75ch; } .muted { color: var(--muted); } code { overflow-wrap: anywhere; }
.figure svg { width: 100%; height: auto; }
.tables { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr));
  gap: 0 2rem; } .wide { grid-column: 1 / -1; } section { min-width: 0; overflow-x: auto; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; overflow-wrap: anywhere; }
th { background: var(--field); font-weight: 600; overflow-wrap: normal; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
"""


_NUMERIC = {
    "attention", "contribution", "share", "drop alone", "of this key", "signed", "causal share",
    "joint drop", "one by one", "median drop", "95% below", "probability", "positive",
    "negative", "net", "value", "sets", "heads each", "position", "N80 set above",
}  # fmt: skip
_WIDE = {"Heads", "Sets of heads", "Random sets", "Concepts"}


def _cells(tag: str, columns: Sequence[str], cells: Iterable[str]) -> str:
    out = []
    for column, cell in zip(columns, cells, strict=True):
        kind = ' class="n"' if column in _NUMERIC else ""
        out.append(f"<{tag}{kind}>{xml(cell)}</{tag}>")
    return "<tr>" + "".join(out) + "</tr>"


def _table(table: Table) -> str:
    title, remark, columns, rows = table
    body = "".join(_cells("td", columns, row) for row in rows)
    kind = ' class="wide"' if title in _WIDE else ""
    return (
        f'<section{kind}><h2>{xml(title)}</h2><p class="muted">{xml(remark)}</p><table><thead>'
        f"{_cells('th', columns, columns)}</thead><tbody>{body}</tbody></table></section>"
    )


def report_page(circuit: Circuit) -> str:
    """The whole page."""
    target = circuit.target
    what = target.feature or "logit minus mean logit"
    sentence = (
        f"{claims.target_name(circuit)} modulated at "
        f"{percent(circuit.shown.share_positive)}: "
        f"{claims.share_sentence(circuit)}."
    )
    notes = [
        *claims.causal_sentences(circuit),
        *map(plain, circuit.notes),
        f"{claims.ERROR_NODE} Here: {percent(circuit.error_node_share)}.",
    ]
    source = (
        f"Model {plain(circuit.model)} (weights "
        f"{circuit.fingerprint[:12]}), dictionaries "
        f"{plain(circuit.dictionaries)}. Target: "
        f"{claims.target_name(circuit)} ({what}, layer {target.layer}) at position "
        f"{target.position}, pre-activation {number(target.preactivation)}. "
        f"Positions count from 1; the beginning-of-sequence token is not counted."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{xml(plain(circuit.prompt))} - saekit</title><style>{_STYLE}</style></head>"
        f"<body><h1>{xml(plain(circuit.prompt))}</h1><p>{xml(sentence)}</p>"
        f'<p class="muted">{xml(source)}</p>'
        f'<div class="figure">{circuit_svg(circuit, "auto")}</div>'
        f"<h2>Notes</h2><ul>{''.join(f'<li>{xml(note)}</li>' for note in notes)}</ul>"
        f'<div class="tables">{"".join(map(_table, tables(circuit)))}</div>'
        "</body></html>\n"
    )
