"""The same route on many prompts as text: medians with intervals, and the common heads."""

from textwrap import shorten

from saekit.report.terminal.text_table import text_table
from saekit.routes.variants.stability import Variants
from saekit.wording import number, percent

ENOUGH = 20  # below, an interval says little
SHOWN_HEADS = 10
SHOWN_PROMPT = 60  # characters


def render_variants(variants: Variants) -> str:
    """The summary for a terminal."""

    def words(name: str, value: float | None) -> str:
        whole = name.startswith(("share", "error", "prob", "beats"))
        return percent(value) if whole else number(value)

    lines = [
        f"Variants  {variants.n} prompts, key {variants.key} -> query {variants.query} in each"
        + (f", {len(variants.left_out)} left out" if variants.left_out else ""),
    ]
    rows = [
        [
            name.replace("_", " "),
            words(name, row.median),
            " to ".join(words(name, end) for end in row.interval or ()) or "-",
            str(row.refused),
        ]
        for name, row in variants.measures.items()
    ]
    lines += text_table(["", "median", "95% interval", "n/a"], rows, left=[""])
    interval = " to ".join(number(end) for end in variants.jaccard_interval or ()) or "-"
    common = [f"{row.head} {percent(row.share)}" for row in variants.heads[:SHOWN_HEADS]]
    lines += [
        f"  Head set: two prompts share {number(variants.jaccard)} of their heads (mean Jaccard, "
        f"95% interval {interval}; random sets {number(variants.jaccard_random)})",
        f"  In the set: {', '.join(common)}" + ", ..." * (len(variants.heads) > SHOWN_HEADS),
    ]
    lines += [
        f"  Left out: {shorten(row['prompt'], SHOWN_PROMPT, placeholder=' ...')} ({row['reason']})"
        for row in variants.left_out[:3]
    ]
    if variants.n < ENOUGH:
        lines.append(f"  Fewer than {ENOUGH} prompts: take the intervals as rough.")
    return "\n".join(lines)
