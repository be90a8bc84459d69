"""Answers of the index for a terminal (rich tables), for programs (JSON) and as CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from saekit.features.reader import FeatureIndex
from saekit.features.records import Example, FeatureRecord, TextFeatures, TokenHit

BARS = " ▁▂▃▄▅▆▇█"
_ABOUT_HITS = (
    "purity: share of the feature's activation that is on this token; lift: how much more often "
    "it fires there than anywhere; mean and max: where it fires on the token; density: how often "
    "it fires at all"
)
_SNIPPET = 6  # tokens on either side of the firing one


def quoted(token: str) -> str:
    """A token with its spaces and line breaks visible: `" large"`."""
    return '"' + token.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + '"'


def number(value: float) -> str:
    """Three significant digits, without an exponent where that is readable."""
    return f"{value:.3g}" if abs(value) < 1e5 else f"{value:.2e}"


def marked(example: Example, around: int | None = None) -> Text:
    """An example as text: the firing token in brackets, others coloured by activation.

    Args:
        example: from an index.
        around: tokens to show on either side; None for all.
    """
    strongest = max(example.activations) or 1.0
    first = 0 if around is None else max(0, example.position - around)
    last = len(example.tokens) if around is None else example.position + around + 1
    text = Text()
    places = zip(example.tokens, example.activations, strict=True)
    for place, (token, activation) in list(enumerate(places))[first:last]:
        token = token.replace("\n", "⏎")
        if place == example.position:
            text.append(f"[{token}]", style="bold black on yellow")
        elif activation > 0.5 * strongest:
            text.append(token, style="yellow")
        else:
            text.append(token, style="green" if activation > 0 else "")
    return text


def histogram_bars(record: FeatureRecord) -> str:
    """One bar per bin up to the largest activation; heights are logarithmic."""
    used = np.flatnonzero(record.histogram)
    if not len(used):
        return ""
    heights = np.log1p(record.histogram[: used[-1] + 1])
    steps = np.ceil(heights / heights.max() * (len(BARS) - 1)).astype(int)
    return "".join(BARS[step] for step in steps)


def hits_table(index: FeatureIndex, hits: Sequence[TokenHit]) -> Table | str:
    """What `by_token` found, one feature per row, each with its strongest example."""
    if not hits:
        return "No feature fires on this token in the indexed text often enough to be listed."
    table = Table(box=None, pad_edge=False, caption=_ABOUT_HITS, caption_justify="left")
    table.add_column("feature", no_wrap=True)
    table.add_column("token", no_wrap=True)
    for name in ("fires on", "purity", "lift", "mean", "max", "density"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("strongest example", no_wrap=True, overflow="crop")
    for hit in hits:
        example = index.top_example(hit.layer, hit.feature)
        table.add_row(
            hit.name,
            Text(quoted(hit.token)),
            f"{hit.count} of {hit.token_count}",
            f"{hit.purity:.0%}",
            number(hit.lift),
            number(hit.mean),
            number(hit.max),
            f"{hit.density:.2%}",
            marked(example, _SNIPPET) if example else "",
        )
    return table


def _tokens_line(pairs: Sequence[tuple[str, float]]) -> Text:
    return Text("  ".join(f"{quoted(token)} {value:+.2f}" for token, value in pairs))


def record_table(record: FeatureRecord) -> Group:
    """The page of one feature."""
    title = f"feature {record.name}" + (f"  {record.label}" if record.label else "")
    if not record.count:
        return Group(Text(title, style="bold"), "It is never active in the indexed text.")
    tokens = Table(box=None, pad_edge=False, title="fires on", title_justify="left")
    tokens.add_column("token")
    for name in ("count", "mean", "max"):
        tokens.add_column(name, justify="right")
    for item in record.top_tokens:
        tokens.add_row(
            Text(quoted(item.token)), str(item.count), number(item.mean), number(item.max)
        )
    lines: list[Any] = [
        Text(title, style="bold"),
        f"active on {record.density:.3%} of positions ({record.count}), "
        f"mean {number(record.mean)}, max {number(record.max)}",
        Text(f"0 {histogram_bars(record)} {number(record.max)}  (log counts)"),
        tokens,
        Text("promotes", style="italic"),
        _tokens_line([(item.token, item.value) for item in record.output_top]),
        Text("suppresses", style="italic"),
        _tokens_line([(item.token, item.value) for item in record.output_bottom]),
    ]
    for name, examples in (("strongest", record.examples), ("at random", record.samples)):
        if examples:
            lines.append(Text(name, style="italic"))
            lines += [Text(f"{number(e.value):>7}  ").append(marked(e)) for e in examples]
    return Group(*lines)


def live_table(found: TextFeatures, per_place: int = 4) -> Table:
    """The features of a text: one row per position and layer, the strongest features first."""
    table = Table(box=None, pad_edge=False)
    for name in ("position", "token", "layer"):
        table.add_column(name, no_wrap=True)
    table.add_column("features (activation)", overflow="fold")
    for position, token in enumerate(found.tokens, 1):
        for row, layer in enumerate(found.layers):
            hits = found.at(position, layer)[:per_place]
            table.add_row(
                str(position) if row == 0 else "",
                Text(quoted(token)) if row == 0 else "",
                str(layer),
                "  ".join(f"{hit.name} ({number(hit.activation)})" for hit in hits) or "-",
            )
    return table


def hits_json(hits: Sequence[TokenHit]) -> dict[str, Any]:
    """`by_token` for programs."""
    return {"hits": [{"name": hit.name, **asdict(hit), "share": hit.share} for hit in hits]}


def record_json(record: FeatureRecord) -> dict[str, Any]:
    """A feature for programs."""
    document = {"name": record.name, **asdict(record)}
    document["histogram"] = {
        "counts": record.histogram.tolist(), "edges": record.edges.tolist()
    }  # fmt: skip
    del document["edges"]
    return document


def live_json(found: TextFeatures) -> dict[str, Any]:
    """The features of a text for programs."""
    hits = [{"name": hit.name, **asdict(hit)} for hit in found.hits]
    return {**asdict(found), "hits": hits}


def hits_csv(hits: Sequence[TokenHit]) -> str:
    """`by_token` as CSV, with a header line."""
    names = ["name", *(field.name for field in fields(TokenHit)), "share"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(hit, name) for name in names] for hit in hits)
    return out.getvalue()
