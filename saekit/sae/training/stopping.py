"""Signals that end a training after its current step instead of in the middle of it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from saekit.errors import Stopped

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """While open, SIGTERM and SIGINT only set `came`; a second one acts as usual.

    Attributes:
        came: whether a signal has come.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    @property
    def came(self) -> bool:
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows it only there
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def leave(self, step: int, steps: int) -> None:
        """End the run.

        Raises:
            Stopped: always.
        """
        number = self.number or signal.SIGTERM  # it came to another process
        raise Stopped(
            f"Stopped by {signal.Signals(number).name} after step {step} of {steps}; "
            "a checkpoint is saved, continue with --resume.",
            exit_code=128 + number,
        )
