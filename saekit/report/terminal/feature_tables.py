"""Answers of the index for a terminal (rich tables), for programs (JSON) and as CSV."""

import csv
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from saekit.coordinates import feature_name
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.records import (
    Example,
    FeatureName,
    FeatureRecord,
    NameScores,
    TextFeatures,
    TextHit,
    TokenHit,
)
from saekit.wording import number, percent

BARS = " ▁▂▃▄▅▆▇█"
_ABOUT_HITS = (
    "match = purity x fires x peak. purity: share of the feature's activation that is on this "
    "token; fires: on how many of these tokens; peak: largest activation on them / anywhere; "
    "density: on how many of all tokens. The example is the strongest stored one on the token, "
    "else the strongest. More columns: --json."
)
_ABOUT_NAMED = (
    "detection, fuzzing: balanced accuracy of the name on held-out text; null: of the name of "
    "another feature; F1, AUROC: over all positions."
)
_SNIPPET = (2, 8)  # tokens before and after the firing one
_ALWAYS_SHOWN = ("match", "purity", "density")


def quoted(token: str) -> str:
    """A token with its spaces, line breaks and control characters visible: `" large"`."""
    shown = token.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")
    return f'"{_visible(shown)}"'


def _visible(text: str) -> str:
    """Control characters, which a terminal would obey, as `\\x1b`; byte vocabularies have them."""
    return "".join(f"\\x{ord(c):02x}" if unicodedata.category(c) == "Cc" else c for c in text)


def marked(example: Example, around: tuple[int, int] | None = None) -> Text:
    """An example as text: the firing token in brackets, others coloured by activation.

    Args:
        example: from an index.
        around: tokens to show before and after it; None for all.
    """
    strongest = max(example.activations) or 1.0
    before, after = around or (len(example.tokens), len(example.tokens))
    first, last = max(0, example.position - before), example.position + after + 1
    text = Text()
    places = zip(example.tokens, example.activations, strict=True)
    for place, (token, activation) in list(enumerate(places))[first:last]:
        token = _visible(token.replace("\n", "⏎").replace("\t", " "))
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


def hits_table(index: FeatureIndex, hits: Sequence[TokenHit], rank: str = "match") -> Table | str:
    """What `by_token` found, one feature per row, each with an example; fits into 80 columns.

    The column that the rows are ordered by is always shown.
    """
    if not hits:
        return "No feature fires on this token in the indexed text often enough to be listed."
    table = Table(
        box=None, pad_edge=False, padding=(0, 1), expand=True, caption=_ABOUT_HITS,
        caption_justify="left",
    )  # fmt: skip
    extra = [] if rank in _ALWAYS_SHOWN else [rank]
    factors = () if index.names else ("fires", "peak")  # a name says more than two of the factors
    table.add_column("feature", no_wrap=True)
    table.add_column("token", no_wrap=True)
    for name in ("match", "purity", *factors, *extra, "density"):
        table.add_column(name, justify="right", no_wrap=True)
    if index.names:
        table.add_column("name", no_wrap=True, overflow="ellipsis", max_width=18)
    table.add_column("example", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in hits:
        example = index.top_example(hit.layer, hit.feature, hit.token_id)
        table.add_row(
            hit.name,
            Text(quoted(hit.token)),
            number(hit.match),
            percent(hit.purity),
            *((percent(hit.share), percent(hit.peak)) if factors else ()),
            *(number(getattr(hit, name)) for name in extra),
            f"{hit.density:.2%}",
            *([_short(index.names.get(hit.layer, hit.feature))] if index.names else []),
            marked(example, _SNIPPET) if example else "",
        )
    return table


def _short(name: FeatureName) -> Text:
    """A name for a narrow column; "-" without one."""
    return Text(name.shown if name.kind else "-")


def _tokens_line(pairs: Sequence[tuple[str, float]]) -> Text:
    return Text("  ".join(f"{quoted(token)} {value:+.2f}" for token, value in pairs))


def record_table(record: FeatureRecord) -> Group:
    """The page of one feature."""
    shown = record.label or (record.naming.shown if record.naming and record.naming.kind else "")
    title = f"feature {record.name}" + (f"  {shown}" if shown else "")
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
        *name_lines(record.naming),
        tokens,
        *_around(record),
        Text("promotes", style="italic"),
        _tokens_line([(item.token, item.value) for item in record.output_top]),
        Text("suppresses", style="italic"),
        _tokens_line([(item.token, item.value) for item in record.output_bottom]),
    ]
    by_range = "one from each range of strength"
    for name, examples in (("strongest", record.examples), (by_range, record.samples)):
        if examples:
            lines.append(Text(name, style="italic"))
            lines += [Text(f"{number(e.value):>7}  ").append(marked(e)) for e in examples]
    return Group(*lines)


def name_lines(naming: FeatureName | None) -> list[Text]:
    """Why a feature has its name, and how well the name does beside another one."""
    if naming is None:
        return []
    if not naming.kind:
        return [Text(f"no name: {naming.rule}")]
    lines = [Text(f"name: {naming.shown}: {naming.rule}")]
    s = naming.scores
    if s.detection is None:
        lines.append(Text("  too rare in the text that names are scored on"))
    else:
        lines.append(
            Text(
                f"  balanced accuracy of detection {number(s.detection)} (another feature's name "
                f"{number(s.null_detection)}), of fuzzing {number(s.fuzzing)} "
                f"({number(s.null_fuzzing)})"
            )
        )
    if s.f1 is not None:
        lines.append(
            Text(
                f"  at every position: precision {number(s.precision)}, recall {number(s.recall)}, "
                f"F1 {number(s.f1)}, AUROC {number(s.auroc)}"
            )
        )
    if s.rise is not None:
        lines.append(
            Text(
                f"  set to its 90th percentile it changes the logit of the name by {s.rise:+.2f}, "
                f"more than {percent(s.rise_rank)} of 100 random features do"
            )
        )
    return lines


def _around(record: FeatureRecord) -> list[Text]:
    """Words before and after, the class, and features that are active together with it."""
    lines = []
    for title, words in (("before it", record.before), ("after it", record.after)):
        if words:
            shown = "  ".join(f"{quoted(word.text)} {percent(word.share)}" for word in words)
            lines.append(Text(f"{title}: {shown}"))
    if record.token_class:
        c = record.token_class
        lines.append(Text(f"class: {percent(c.share)} {c.text} (lift {number(c.lift)})"))
    for title, others in (("same", record.same_layer), ("next", record.next_layer)):
        if others:
            shown = "  ".join(f"{other.name} {other.correlation:.2f}" for other in others)
            lines.append(Text(f"correlated, {title} layer: {shown}"))
    return lines


def live_table(found: TextFeatures) -> Table:
    """The features of a text: one row per position and layer, the strongest features first."""
    table = Table(box=None, pad_edge=False)
    for name in ("position", "token", "layer"):
        table.add_column(name, no_wrap=True)
    table.add_column("features (activation)", overflow="fold")
    for position, token in enumerate(found.tokens, 1):
        for row, layer in enumerate(found.layers):
            hits = found.at(position, layer)
            table.add_row(
                str(position) if row == 0 else "",
                Text(quoted(token)) if row == 0 else "",
                str(layer),
                "  ".join(_live(hit) for hit in hits) or "-",
            )
    return table


def _live(hit: TextHit) -> str:
    called = f" {hit.label}" if hit.label else ""
    return f"{hit.name}{called} ({number(hit.activation)})"


def hits_json(hits: Sequence[TokenHit]) -> dict[str, Any]:
    """`by_token` for programs."""
    return {
        "hits": [
            {"name": hit.name, **asdict(hit), "share": hit.share, "match": hit.match}
            for hit in hits
        ]
    }


def named_json(index: FeatureIndex, features: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Features with their names for programs."""
    rows = []
    for layer, feature in features:
        name = index.names.get(layer, feature) if index.names else None
        density = float(index.densities(layer)[feature])
        row = {"name": feature_name(layer, feature), "layer": layer, "feature": feature}
        rows.append(row | {"density": density, "naming": asdict(name) if name else None})
    return {"features": rows}


def named_table(index: FeatureIndex, features: Sequence[tuple[int, int]]) -> Table | str:
    """Features with their names and scores, one per row."""
    if not features:
        return "No feature has this name."
    table = Table(box=None, pad_edge=False, padding=(0, 1), caption=_ABOUT_NAMED)
    table.caption_justify = "left"
    for name in ("feature", "name"):
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    for name in ("detection", "null", "fuzzing", "F1", "AUROC", "density"):
        table.add_column(name, justify="right", no_wrap=True)
    for layer, feature in features:
        name = index.names.get(layer, feature) if index.names else None
        scores = name.scores if name else NameScores()
        measured = (
            scores.detection, scores.null_detection, scores.fuzzing, scores.f1, scores.auroc,
        )  # fmt: skip
        table.add_row(
            feature_name(layer, feature),
            _short(name) if name else "-",
            *map(number, measured),
            f"{index.densities(layer)[feature]:.2%}",
        )
    return table


def named_csv(index: FeatureIndex, features: Sequence[tuple[int, int]]) -> str:
    """Features with their names and scores as CSV, with a header line."""
    rows = named_json(index, features)["features"]
    scores = [field.name for field in fields(NameScores)]
    lines: list[list[Any]] = [["name", "text", "kind", "density", *scores]]
    for row in rows:
        name = row["naming"] or {"text": "", "kind": "", "scores": {}}
        values = [name["scores"].get(score) for score in scores]
        lines.append([row["name"], name["text"], name["kind"], row["density"], *values])
    return _csv(lines)


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    """Lines that end in a line feed; Python does not quote a carriage return in these by itself."""
    out = io.StringIO()
    usual, quoting = (
        csv.writer(out, lineterminator="\n", quoting=how)
        for how in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
    )
    for row in rows:
        returns = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoting if returns else usual).writerow(row)
    return out.getvalue()


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


def live_csv(found: TextFeatures) -> str:
    """The features of a text as CSV, with a header line."""
    names = ["name", *(field.name for field in fields(TextHit))]
    return _csv([names, *([getattr(hit, name) for name in names] for hit in found.hits)])


def hits_csv(hits: Sequence[TokenHit]) -> str:
    """`by_token` as CSV, with a header line."""
    names = ["name", *(field.name for field in fields(TokenHit)), "share", "match"]
    return _csv([names, *([getattr(hit, name) for name in names] for hit in hits)])
