"""The numbers of a circuit as tables of text, for the report page and the viewer."""

from typing import Any

from saekit.report.circuit import claims
from saekit.report.formatting import plain, span_text, visible
from saekit.routes.circuit import Circuit
from saekit.wording import number, percent

Table = tuple[str, str, list[str], list[list[str]]]  # title, remark, columns, rows


def _evidence(evidence: Any) -> str:
    if isinstance(evidence, dict):
        return ", ".join(f"{key} {_value(value)}" for key, value in evidence.items())
    return plain(evidence) if evidence is not None else ""


def _value(value: Any) -> str:
    return number(value) if isinstance(value, float) else plain(value)


def _set_rows(circuit: Circuit) -> list[list[str]]:
    rows = []
    for title, chosen in (("heads shown", circuit.shown), ("N80 set", circuit.set)):
        rows.append(
            [
                f"{title}: {', '.join(chosen.heads) or 'none'}",
                percent(chosen.share_positive),
                percent(chosen.share_of_key),
                percent(chosen.share_signed),
                percent(chosen.share_causal),
                number(chosen.joint_drop),
                number(chosen.sum_of_single_drops),
            ]
        )
    return rows


def tables(circuit: Circuit) -> list[Table]:
    """All tables of a circuit: (title, remark, columns, rows); the viewer shows the same.

    Every cell is text that is already formatted; empty tables are left out.
    """
    random = circuit.random_sets
    drawn: list[Table] = [
        (
            "Heads",
            claims.MAPS,
            ["head", "attention", "contribution", "share", "drop alone", "maps key to query"],
            [
                [
                    head.head,
                    number(head.attention),
                    number(head.contribution),
                    percent(head.share),
                    number(head.causal),
                    "yes" if claims.maps_key(circuit, head) else "no",
                ]
                for head in circuit.heads
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
            _set_rows(circuit),
        ),
        (
            "Random sets",
            claims.RANDOM_SETS,
            ["sets", "heads each", "median drop", "95% below", "N80 set above"],
            [
                [
                    str(random.n),
                    str(random.size),
                    number(random.median_drop),
                    number(random.p95_drop),
                    percent(random.share_below),
                ]
            ]
            if random.n
            else [],
        ),
        (
            "Concepts",
            "A concept is shown over the layers at which its features are active at the position.",
            ["concept", "kind", "position", "layers", "features", "evidence"],
            [
                [
                    plain(concept.name),
                    plain(concept.kind),
                    str(concept.position),
                    span_text(concept.span),
                    ", ".join(concept.features),
                    _evidence(concept.evidence),
                ]
                for concept in circuit.concepts
            ],
        ),
        (
            "Next token",
            "The model's own prediction after the query.",
            ["token", "probability"],
            [
                [f'"{visible(item.token)}"', percent(item.probability)]
                for item in circuit.prediction
            ],
        ),
        (
            "Arriving at the query",
            "Contributions to the target over all edges from one position; position 0 is the "
            "beginning-of-sequence token and has no share.",
            ["position", "positive", "negative", "net", "share"],
            [
                [
                    str(row.position),
                    number(row.positive),
                    number(row.negative),
                    number(row.net),
                    percent(row.share) if row.position else "",
                ]
                for row in circuit.arrivals
            ],
        ),
        (
            "Features read at the key",
            "What the set's heads carry from the key to the target, split over the features there.",
            ["feature", "name", "contribution", "share"],
            [
                [
                    row.feature,
                    plain(row.name),
                    number(row.contribution),
                    percent(row.share),
                ]
                for row in circuit.sources
            ],
        ),
        (
            "Completeness",
            f"{claims.COMPLETENESS} Error here: {number(circuit.completeness_error)}.",
            ["component", "value"],
            [[plain(row.name), number(row.value)] for row in circuit.components],
        ),
    ]
    return [table for table in drawn if table[3]]
