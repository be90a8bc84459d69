"""A circuit as one readable screen of text."""

from textwrap import wrap

from rich.cells import cell_len

from saekit.report.formatting import span_text
from saekit.report.terminal.text_table import text_table
from saekit.routes.circuit import Circuit
from saekit.routes.circuit_parts import CircuitSet
from saekit.wording import number, percent

SHOWN_SET_HEADS = 12
SHOWN_PAIRS = 1
SHOWN_CONCEPTS = 10
SHOWN_MEMBERS = 3
SHOWN_ARRIVALS = 4
WIDTH = 99
TIE = "\N{NO-BREAK SPACE}"  # where a line is not to be broken
LABEL = 8  # columns of what a block of lines is called


def _block(label: str, text: str, indent: int = LABEL) -> list[str]:
    """`text` behind a label, further lines below its beginning."""
    lines = wrap(
        text, WIDTH, initial_indent=label.ljust(indent), subsequent_indent=" " * indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace(TIE, " ") for line in lines]


def _wrap(items: list[str], indent: str = "  ", gap: str = "  ") -> list[str]:
    lines, line = [], indent
    for item in items:
        if len(line) > len(indent) and len(line) + len(item) > WIDTH:
            lines.append(line.rstrip())
            line = indent
        line += item + gap
    return [*lines, line.removesuffix(gap).rstrip()]


def _quoted(token: str) -> str:
    return "'" + token.replace("\n", "\\n") + "'"


def _head_list(chosen: CircuitSet) -> str:
    names = chosen.heads[:SHOWN_SET_HEADS]
    more = len(chosen.heads) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _count(n: int) -> str:
    return f"{n} head" if n == 1 else f"{n} heads"


def _padded(text: str, cells: int) -> str:
    return text + " " * max(0, cells - cell_len(text))


WAYS = {
    "renormalise": "rows renormalised", "mean": "mean values", "resample": "counterfactual values",
    "resample full": "counterfactual values and attention",
}  # fmt: skip


def _heads(circuit: Circuit) -> list[str]:
    """One line per listed head; the Shapley value where the head is in the set and it is small."""
    chosen = circuit.set
    shapley = dict(zip(chosen.heads, chosen.shapley or [], strict=False))
    columns = ["head", "attention", "contribution", "share", "drop alone"]
    rows = [
        [h.head, number(h.attention), number(h.contribution), percent(h.share), number(h.causal)]
        for h in circuit.heads
    ]
    if shapley:
        columns.append("Shapley")
        for row in rows:
            row.append(number(shapley[row[0]]) if row[0] in shapley else "")
    return text_table(columns, rows, left=["head"])


def _arrivals(circuit: Circuit) -> str:
    """From where it comes, over all heads: the strongest positions, and the key."""
    ranked = [row for row in circuit.arrivals if row.share is not None]
    ranked.sort(key=lambda row: -(row.share or 0))
    own = [row for row in ranked[SHOWN_ARRIVALS - 1 :] if row.position == circuit.key]
    kept = ranked[: SHOWN_ARRIVALS - len(own)] + own
    shown = [
        f"{row.position} {_quoted(circuit.token(row.position))} {percent(row.share)}"
        for row in kept
    ]
    more = f", {len(ranked) - len(shown)} more" * (len(ranked) > len(shown))
    verb = "carries" if circuit.n80_all_keys == 1 else "carry"
    return f"{', '.join(shown) or 'refused'}{more}; {_count(circuit.n80_all_keys)} {verb} 80%"


def _set(circuit: Circuit) -> list[str]:
    """The set, its shares, and what its removal does beside random sets."""
    key, chosen, random = circuit.key, circuit.set, circuit.random_sets
    zero = circuit.ablations[0] if circuit.ablations else None
    token = f", the next logit by {number(zero.logit_drop)}" if zero else ""
    top = percent(circuit.prediction[0].probability) if circuit.prediction else None
    lines = [
        *_block("Set", f"{_count(len(chosen.heads))}: {_head_list(chosen)}"),
        *_block(
            "",
            f"{percent(chosen.share_of_key)} of what comes from position {key}, "
            f"{percent(chosen.share_positive)} of all that arrives at {circuit.query} "
            f"(signed share {percent(chosen.share_signed)})",
        ),
        *_block(
            "",
            f"without it the target falls by {number(chosen.joint_drop)} (one by one "
            f"{number(chosen.sum_of_single_drops)}){token}"
            + (f": {top} -> {percent(chosen.prediction_after)}" if top else ""),
        ),
        *_block(
            "",
            f"causal share {percent(chosen.share_causal)} of all edges, "
            f"{percent(chosen.share_causal_of_key)} of the edges from position {key}",
        ),
        *_block(
            "",
            f"{random.n} random sets of {_count(random.size)}: median "
            f"{number(random.median_drop)}, 95% below {number(random.p95_drop)}; the set beats "
            f"{percent(random.share_below)}",
        ),
    ]
    ways = [
        f"{'direct path' if row.direct else WAYS[row.name]} {number(row.joint_drop)}{TIE}"
        f"(random{TIE}{number(row.random_median)})"
        for row in circuit.ablations[1:]
    ]
    return lines + (_block("", f"other removals: {', '.join(ways)}") if ways else [])


def _concepts(circuit: Circuit) -> list[str]:
    """In the order of positions; those at the key and the query before others that do not fit."""
    ends = {circuit.key, circuit.query}
    kept = sorted(circuit.concepts, key=lambda c: c.position not in ends)[:SHOWN_CONCEPTS]
    lines = [
        f"{c.position} {_padded(_quoted(circuit.token(c.position)), 12)} {c.name}, "
        f"{span_text(c.span)} ({', '.join(c.features[:SHOWN_MEMBERS])}"
        f"{', ...' * (len(c.features) > SHOWN_MEMBERS)})"
        for c in sorted(kept, key=lambda c: c.position)
    ]
    if len(circuit.concepts) > SHOWN_CONCEPTS:
        lines.append(f"and {len(circuit.concepts) - SHOWN_CONCEPTS} more (--json)")
    width = LABEL + 2
    labels = ["Concepts", *[""] * len(lines)]
    return [label.ljust(width) + line for label, line in zip(labels, lines, strict=False)]


def _why(circuit: Circuit) -> list[str]:
    """What makes the set's strongest heads attend to the key."""
    lines = []
    for match in circuit.matches:
        gate = "" if match.margin is None else f", {number(match.margin)} above its gate"
        asked = [f"{_named(k.feature, k.name)}{TIE}{number(k.value)}" for k in match.key_features]
        pairs = [
            f"{_named(p.query, p.query_name)}{TIE}x{TIE}{_named(p.key, p.key_name)}{TIE}"
            f"{number(p.value)}"
            for p in match.pairs[:SHOWN_PAIRS]
        ]
        text = f"{number(match.contrast)}{gate}" + f": {', '.join(asked)}" * bool(asked)
        text += f"; {', '.join(pairs)}" * bool(pairs)
        lines += _block(f"  {match.head}", text, LABEL + 2)
    why = (
        f"Why they look at {circuit.key}: score above the mean of the others, by feature there; "
        "query x key feature"
    )
    return [why, *lines] if lines else []


def _named(feature: str, name: str | None) -> str:
    return f"{feature}{TIE}[{name.replace(' ', TIE)}]" if name else feature


def render(circuit: Circuit) -> str:
    """The circuit for a terminal; every number is the one in the JSON, formatted as in the SVG."""
    key, query, target = circuit.key, circuit.query, circuit.target
    what = f"feature {target.feature}" if target.feature else "logit minus mean logit"
    named = target.concept if target.token is None else _quoted(target.token)
    sources = [f"{_named(s.feature, s.name)}{TIE}{number(s.contribution)}" for s in circuit.sources]
    blocks = [
        [
            circuit.prompt,
            f"{circuit.model}, {len(circuit.tokens)} tokens, dictionaries {circuit.dictionaries}",
            *_wrap([f"{i} {_quoted(token)}" for i, token in enumerate(circuit.tokens, 1)]),
            "  next token: "
            + "  ".join(f"{_quoted(p.token)} {percent(p.probability)}" for p in circuit.prediction),
        ],
        [
            *_block(
                "Target",
                f"{named} (layer {target.layer}, {what}) at position {query} "
                f"{_quoted(circuit.token(query))}: {number(target.preactivation)}",
            ),
            *_block("From", _arrivals(circuit)),
            f"Edges   key {key} {_quoted(circuit.token(key))} -> query {query}",
            *_heads(circuit),
        ],
        _set(circuit),
        _concepts(circuit),
        (_block("Read", f"at position {key}: {', '.join(sources)}") if sources else [])
        + _why(circuit),
        [
            f"Check   completeness error {number(circuit.completeness_error)}, dictionary error "
            f"node {percent(circuit.error_node_share)}",
            *(line for note in circuit.notes for line in _block("Note", note)),
        ],
    ]
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)
