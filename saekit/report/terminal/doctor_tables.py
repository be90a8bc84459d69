"""The tables of `saekit doctor`: what is installed, what is used, and the self-check."""

from typing import Any

from rich.table import Table


def _table(title: str, *columns: str, caption: str = "") -> Table:
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for column in columns:
        table.add_column(column)
    return table


def doctor_tables(document: dict[str, Any]) -> list[Table]:
    """Of the document that `--json` prints."""
    machine = _table("This installation", "what", "found")
    for name, value in {**document["versions"], **document["devices"]}.items():
        machine.add_row(name, value)
    for name, value in document["threads"].items():
        label = "threads" if name == "torch" else name
        machine.add_row(label, "not set" if value is None else str(value))
    kernels = _table(
        "Compiled kernels", "kernel", "for", "active", "why not",
        caption="Where a kernel is not active PyTorch or NumPy computes the same, slower.",
    )  # fmt: skip
    for row in document["kernels"]:
        kernels.add_row(row["kernel"], row["for"], "yes" if row["active"] else "no", row["reason"])
    check = document["self_check"]
    checks = _table(
        f"Self-check of one layer on {check['device']} ({check['kernels']} kernels, "
        f"{check['seconds']:.1f} s)", "stage", "error", "result",
        caption="Error: the largest difference from plain PyTorch, relative to the largest number; "
        f"at most {check['tolerance']:g}.",
    )  # fmt: skip
    for name, error in check["errors"].items():
        words = "not finite" if error is None else f"{error:.1e}"
        checks.add_row(name, words, "differs" if name in check["failed"] else "passed")
    return [machine, kernels, checks]
