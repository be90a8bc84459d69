"""A circuit as one readable screen of text."""

from textwrap import wrap
from typing import TYPE_CHECKING

from saekit.wording import number, percent

if TYPE_CHECKING:
    from saekit.routes.circuit import Circuit, CircuitSet

SHOWN_SET_HEADS = 12
WIDTH = 88


def _wrap(items: list[str], indent: str = "  ", gap: str = "  ") -> list[str]:
    lines, line = [], indent
    for item in items:
        if len(line) > len(indent) and len(line) + len(item) > WIDTH:
            lines.append(line.rstrip())
            line = indent
        line += item + gap
    return [*lines, line.rstrip()]


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
    ]
    if circuit.concepts:
        lines += ["", "Concepts"]
        lines += [
            f"  {c.position} {_quoted(circuit.token(c.position)):<12} {c.name}, "
            f"{_span(*c.span)} ({', '.join(c.features[:4])}{', ...' * (len(c.features) > 4)})"
            for c in circuit.concepts
        ]
    if circuit.sources:
        named = [f"{s.feature}{f' ({s.name})' if s.name else ''} {number(s.contribution)}"
                 for s in circuit.sources]  # fmt: skip
        lines += ["", f"Read at position {key}", *_wrap(named, gap=", ")]
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
    return "\n".join(line.rstrip().rstrip(",") if line.endswith(", ") else line for line in lines)
