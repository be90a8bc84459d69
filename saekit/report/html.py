"""The report as one HTML page: the figure, all numbers in tables, and how each was measured.

No script, no file beside it, nothing loaded from a network; light or dark by the reader's system.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from saekit.report.circuit import claims
from saekit.report.circuit.svg import circuit_svg
from saekit.report.formatting import plain, span_text, visible, xml
from saekit.wording import number, percent

Document = dict[str, Any]
Table = tuple[str, str, list[str], list[list[str]]]

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


def _evidence(evidence: Any) -> str:
    if isinstance(evidence, dict):
        return ", ".join(f"{key} {_value(value)}" for key, value in evidence.items())
    return plain(evidence) if evidence is not None else ""


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else plain(value)


def _set_rows(document: Document) -> list[list[str]]:
    rows = []
    for title, key in (("heads shown", "shown"), ("N80 set", "set")):
        chosen = document.get(key)
        if chosen:
            rows.append(
                [
                    f"{title}: {', '.join(chosen.get('heads') or []) or 'none'}",
                    percent(chosen.get("share_positive")),
                    percent(chosen.get("share_of_key")),
                    percent(chosen.get("share_signed")),
                    percent(chosen.get("share_causal")),
                    number(chosen.get("joint_drop")),
                    number(chosen.get("sum_of_single_drops")),
                ]
            )
    return rows


def tables(circuit: Any) -> list[Table]:
    """All tables of a circuit: (title, remark, columns, rows); the viewer shows the same.

    Every cell is text that is already formatted; empty tables are left out.
    """
    document = claims.as_document(circuit)
    random = document.get("random_sets") or {}
    drawn: list[Table] = [
        (
            "Heads",
            claims.MAPS,
            ["head", "attention", "contribution", "share", "drop alone", "maps key to query"],
            [
                [
                    claims.name_of_head(head),
                    number(head.get("attention")),
                    number(head.get("contribution")),
                    percent(head.get("share")),
                    number(head.get("causal")),
                    {True: "yes", False: "no", None: "n/a"}[claims.maps_key(document, head)],
                ]
                for head in document.get("heads") or []
            ],
        ),
        (
            "Sets of heads",
            claims.SHARE_POSITIVE + " " + claims.SHARE_CAUSAL,
            [
                "set",
                "share",
                "of this key",
                "signed",
                "causal share",
                "joint drop",
                "one by one",
            ],
            _set_rows(document),
        ),
        (
            "Random sets",
            claims.RANDOM_SETS,
            ["sets", "heads each", "median drop", "95% below", "N80 set above"],
            [
                [
                    str(random["n"]),
                    str(random["size"]),
                    number(random.get("median_drop")),
                    number(random.get("p95_drop")),
                    percent(random.get("share_below")),
                ]
            ]
            if random.get("n")
            else [],
        ),
        (
            "Concepts",
            "A concept is shown over the layers at which its features are active at the position.",
            ["concept", "kind", "position", "layers", "features", "evidence"],
            [
                [
                    plain(concept["name"]),
                    plain(concept.get("kind") or ""),
                    str(concept["position"]),
                    span_text(concept.get("span")),
                    ", ".join(concept.get("features") or []),
                    _evidence(concept.get("evidence")),
                ]
                for concept in document.get("concepts") or []
            ],
        ),
        (
            "Next token",
            "The model's own prediction after the query.",
            ["token", "probability"],
            [
                [f'"{visible(item["token"])}"', percent(item["probability"])]
                for item in document.get("prediction") or []
            ],
        ),
        (
            "Arriving at the query",
            "Contributions to the target over all edges from one position; position 0 is the "
            "beginning-of-sequence token and has no share.",
            ["position", "positive", "negative", "net", "share"],
            [
                [
                    str(row["position"]),
                    number(row["positive"]),
                    number(row["negative"]),
                    number(row["net"]),
                    percent(row.get("share")) if row["position"] else "",
                ]
                for row in document.get("arrivals") or []
            ],
        ),
        (
            "Features read at the key",
            "What the set's heads carry from the key to the target, split over the features there.",
            ["feature", "name", "contribution", "share"],
            [
                [
                    row["feature"],
                    plain(row.get("name") or ""),
                    number(row["contribution"]),
                    percent(row.get("share")),
                ]
                for row in document.get("sources") or []
            ],
        ),
        (
            "Completeness",
            f"{claims.COMPLETENESS} Error here: {number(document.get('completeness_error'))}.",
            ["component", "value"],
            [
                [plain(row["name"]), number(row["value"])]
                for row in document.get("components") or []
            ],
        ),
    ]
    return [table for table in drawn if table[3]]


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


def report_page(circuit: Any) -> str:
    """The whole page."""
    document = claims.as_document(circuit)
    target = document["target"]
    what = target.get("feature") or "logit minus mean logit"
    sentence = (
        f"{claims.target_name(document)} modulated at "
        f"{percent(claims.shown_set(document).get('share_positive'))}: "
        f"{claims.share_sentence(document)}."
    )
    notes = [
        *claims.causal_sentences(document),
        *map(plain, document.get("notes") or []),
        f"{claims.ERROR_NODE} Here: {percent(document.get('error_node_share'))}.",
    ]
    source = (
        f"Model {plain(document.get('model') or 'unknown')} (weights "
        f"{str(document.get('fingerprint') or 'unknown')[:12]}), dictionaries "
        f"{plain(document.get('dictionaries') or 'unknown')}. Target: "
        f"{claims.target_name(document)} ({what}, layer {target.get('layer')}) at position "
        f"{target['position']}, pre-activation {number(target.get('preactivation'))}. "
        f"Positions count from 1; the beginning-of-sequence token is not counted."
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{xml(plain(document['prompt']))} - saekit</title><style>{_STYLE}</style></head>"
        f"<body><h1>{xml(plain(document['prompt']))}</h1><p>{xml(sentence)}</p>"
        f'<p class="muted">{xml(source)}</p>'
        f'<div class="figure">{circuit_svg(document, "auto")}</div>'
        f"<h2>Notes</h2><ul>{''.join(f'<li>{xml(note)}</li>' for note in notes)}</ul>"
        f'<div class="tables">{"".join(map(_table, tables(document)))}</div>'
        "</body></html>\n"
    )
