"""A circuit as one readable screen of text."""

from textwrap import wrap
from typing import TYPE_CHECKING

from saekit.wording import number, percent

if TYPE_CHECKING:
    from saekit.routes.circuit import Circuit, CircuitSet

SHOWN_SET_HEADS = 12
SHOWN_PAIRS = 2
WIDTH = 88


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


def _head_list(chosen: "CircuitSet") -> str:
    names = chosen.heads[:SHOWN_SET_HEADS]
    more = len(chosen.heads) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def _count(n: int) -> str:
    return f"{n} head" if n == 1 else f"{n} heads"


def _span(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layer {first}-{last}"


WAYS = {
    "renormalise": "rows renormalised", "mean": "mean values", "resample": "counterfactual values",
    "resample full": "counterfactual values and attention",
}  # fmt: skip


def _other_ways(circuit: "Circuit") -> list[str]:
    """The set removed in other ways than at the top, beside random sets, and Shapley values."""
    lines, chosen = [], circuit.set
    ways = [
        f"{'direct path' if row.direct else WAYS[row.name]} {number(row.joint_drop)} "
        f"(random {number(row.random_median)})"
        for row in circuit.ablations[1:]
    ]
    if ways:
        lines += wrap(
            f"        removed in other ways: {', '.join(ways)}", WIDTH, subsequent_indent=" " * 8
        )
        first = circuit.ablations[0]
        lines.append(
            f"        the next token's logit falls by {number(first.logit_drop)}, to "
            f"{percent(first.prediction_after)}"
        )
    if chosen.shapley is not None and len(chosen.heads) > 1:
        pairs = zip(chosen.heads, chosen.shapley, strict=True)
        values = ", ".join(f"{head} {number(value)}" for head, value in pairs)
        lines += wrap(f"        Shapley {values}", WIDTH, subsequent_indent=" " * 8)
    return lines


def _why(circuit: "Circuit") -> list[str]:
    """What makes the set's strongest heads attend to the key."""
    lines = []
    for match in circuit.matches:
        gate = "" if match.margin is None else f", {number(match.margin)} above its gate"
        asked = [f"{_named(k.feature, k.name)} {number(k.value)}" for k in match.key_features]
        pairs = [
            f"{_named(p.query, p.query_name)} x {_named(p.key, p.key_name)} {number(p.value)}"
            for p in match.pairs[:SHOWN_PAIRS]
        ]
        lines += wrap(
            f"  {match.head:<7} {number(match.contrast)} above the other positions{gate}, by "
            f"{', '.join(asked)} there; pairs {', '.join(pairs)}",
            WIDTH,
            subsequent_indent=" " * 10,
        )
    why = f"Why they look at {circuit.key} (attention scores before the softmax)"
    return ["", why, *lines] if lines else []


def _named(feature: str, name: str | None) -> str:
    return f"{feature} ({name})" if name else feature


def render(circuit: "Circuit") -> str:
    """The circuit for a terminal; every number is the one in the JSON, formatted as in the SVG."""
    key, query = circuit.key, circuit.query
    target, chosen, random = circuit.target, circuit.set, circuit.random_sets
    what = f"feature {target.feature}" if target.feature else "logit minus mean logit"
    lines = [
        circuit.prompt,
        f"model {circuit.model}, {len(circuit.tokens)} tokens, dictionaries {circuit.dictionaries}",
        "",
        *_wrap([f"{i} {_quoted(token)}" for i, token in enumerate(circuit.tokens, 1)]),
        "  next token: "
        + "  ".join(f"{_quoted(p.token)} {percent(p.probability)}" for p in circuit.prediction),
        "",
        f"Target  {target.concept} (layer {target.layer}, {what}) at position {query} "
        f"{_quoted(circuit.token(query))}: {number(target.preactivation)}",
        f"Edges   key {key} {_quoted(circuit.token(key))} -> query {query}",
        "",
        f"  {'head':<9}{'attention':>10}{'contribution':>14}{'share':>8}{'drop alone':>12}",
    ]
    lines += [
        f"  {h.head:<9}{number(h.attention):>10}{number(h.contribution):>14}"
        f"{percent(h.share):>8}{number(h.causal):>12}"
        for h in circuit.heads
    ]
    lines += [
        "",
        f"Set     {_count(len(chosen.heads))}: {percent(chosen.share_of_key)} of what comes from "
        f"position {key}, {percent(chosen.share_positive)} of all that arrives at {query}",
        *_wrap(_head_list(chosen).split(" "), indent="        ", gap=" "),
        f"        signed share {percent(chosen.share_signed)}; removing the set takes "
        f"{number(chosen.joint_drop)} off the target (one by one: "
        f"{number(chosen.sum_of_single_drops)}),",
        f"        causal share {percent(chosen.share_causal)} of all edges, "
        f"{percent(chosen.share_causal_of_key)} of the edges from position {key}",
        f"        {random.n} random sets of "
        f"{_count(random.size)}: median {number(random.median_drop)}, 95% below "
        f"{number(random.p95_drop)}; the set beats {percent(random.share_below)}",
        *_other_ways(circuit),
    ]
    if circuit.concepts:
        lines += ["", "Concepts"]
        lines += [
            f"  {c.position} {_quoted(circuit.token(c.position)):<12} {c.name}, "
            f"{_span(*c.span)} ({', '.join(c.features[:4])}{', ...' * (len(c.features) > 4)})"
            for c in circuit.concepts
        ]
    if circuit.sources:
        named = [f"{_named(s.feature, s.name)} {number(s.contribution)}" for s in circuit.sources]
        lines += ["", f"Read at position {key}", *_wrap(named, gap=", ")]
    lines += _why(circuit)
    lines += [
        "",
        f"Check   completeness error {number(circuit.completeness_error)}, dictionary error node "
        f"{percent(circuit.error_node_share)}",
        *(
            line
            for note in circuit.notes
            for line in wrap(f"Note    {note}", WIDTH, subsequent_indent=" " * 8)
        ),
    ]
    return "\n".join(lines)
