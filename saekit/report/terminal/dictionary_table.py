"""The table of `saekit evaluate`: one row per layer, with what each column means."""

from collections.abc import Sequence
from typing import Any

from rich.table import Table


def evaluation_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The main metrics of `saekit.sae.evaluation.evaluate` for a terminal (`--json` has all)."""
    tokens = f"{rows[0]['tokens']:,}" if rows else "0"
    kinds = ", ".join(sorted({row["architecture"] for row in rows}))
    table = Table(
        title=f"Dictionaries ({kinds}) on {tokens} held-out tokens",
        caption="FVU: fraction of variance unexplained. CE recovered: 1 = the model predicts as "
        "well with the dictionary spliced in, 0 = as badly as with zeros. Dead: never active here.",
        title_justify="left",
        caption_justify="left",
    )
    for name in (
        "layer",
        "features",
        "L0",
        "FVU",
        "cosine",
        "CE recovered",
        "KL recovered",
        "dead",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row["layer"]),
            f"{row['d_sae']:,}",
            f"{row['l0']:.1f}",
            f"{row['fvu']:.3f}",
            f"{row['cossim']:.3f}",
            f"{row['ce_loss_score']:.3f}",
            f"{row['kl_div_score']:.3f}",
            f"{row['dead_share']:.1%}",
        )
    return table
