"""Tables as lines of text, for screens that are paragraphs and tables by turns."""

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_WIDE = 10_000  # nothing is cut or broken


def text_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[str] = (), indent: int = 2
) -> list[str]:
    """The lines of a table without borders; wide characters keep their columns.

    Args:
        columns: the header.
        left: columns that start at the left; numbers end at the right.
        indent: spaces before each line.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in columns:
        table.add_column(Text(name), justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=_WIDE, color_system=None).print(table)
    return [(" " * indent + line).rstrip() for line in out.getvalue().splitlines()]
