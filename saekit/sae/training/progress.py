"""What people see of a running training: a live table on a terminal, elsewhere a line at times."""

import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from saekit.sae.training.config import TrainConfig

_LINE_EVERY = 30.0  # seconds between lines where there is no terminal
_REFRESH = 2  # times a second


class Progress:
    """Tokens, rate, remaining time, and FVU, L0 and dead share per layer, on stderr."""

    def __init__(self, config: TrainConfig, step: int, layers: Sequence[int], show: bool):
        self.config, self.layers, self.show = config, list(layers), show
        self.done, self.total = step * config.batch_tokens, config.steps * config.batch_tokens
        self._start, self._start_done, self._said = time.monotonic(), self.done, 0.0
        self._rows: Mapping[int, Mapping[str, float]] = {}
        self.console = Console(stderr=True)
        self._bar = Bar(
            TextColumn("training {task.fields[n]} dictionaries"), BarColumn(),
            MofNCompleteColumn(), TextColumn("tokens, {task.fields[rate]}"), TimeRemainingColumn(),
            console=self.console,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=self.total, n=len(self.layers), rate="")
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        if self.show and self.console.is_terminal:
            self._live = Live(
                get_renderable=self._picture, console=self.console, refresh_per_second=_REFRESH
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        elif self.show and kind is None:
            self._say()

    @property
    def rate(self) -> float:
        """Tokens per second since the start of this process."""
        seconds = time.monotonic() - self._start
        return (self.done - self._start_done) / seconds if seconds > 0 else 0.0

    def advance(self, tokens: int) -> None:
        """A step is done."""
        self.done += tokens
        if self.show and not self._live and time.monotonic() - self._said > _LINE_EVERY:
            if self._said:
                self._say()
            self._said = time.monotonic()

    def figures(self, rows: Mapping[int, Mapping[str, float]]) -> None:
        """The newest figures per layer."""
        self._rows = rows

    def _picture(self) -> Group:
        self._bar.update(self._task, completed=self.done, rate=f"{self.rate:,.0f}/s")
        return Group(self._bar, layer_table(self._rows)) if self._rows else Group(self._bar)

    def _say(self) -> None:
        if not self._rows:
            return
        fvu = [row["fvu"] for row in self._rows.values()]
        dead = max(row["dead_share"] for row in self._rows.values())
        left = (self.total - self.done) / max(self.rate, 1e-9)
        sys.stderr.write(
            f"{self.done:,} of {self.total:,} tokens, {self.rate:,.0f}/s, {left:.0f} s left, "
            f"FVU {sum(fvu) / len(fvu):.3f} (worst {max(fvu):.3f}), dead at most {dead:.1%}\n"
        )
        sys.stderr.flush()


def layer_table(rows: Mapping[int, Mapping[str, float]]) -> Table:
    """FVU, L0 and dead share, a row per layer."""
    table = Table(box=None, pad_edge=False)
    for name in ("layer", "FVU", "L0", "dead"):
        table.add_column(name, justify="right")
    for layer, row in rows.items():
        table.add_row(
            str(layer), f"{row['fvu']:.4f}", f"{row['l0']:.2f}", f"{row['dead_share']:.2%}"
        )
    return table
