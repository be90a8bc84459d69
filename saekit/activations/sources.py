"""Where activations come from: the protocol, and the source that runs the model.

A source hands out the residual stream of all its layers, token after token, in passes of its own
choosing.  How tokens are shuffled is none of its business (see `saekit.activations.shuffle`).
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from saekit.activations.bf16 import NarrowForward, can_run
from saekit.activations.residuals import check_layers, residuals
from saekit.activations.rows import Rows, Text, TextRows
from saekit.model.loading import LanguageModel

FORWARD_TOKENS = 4096  # tokens per forward pass: fits the caches, hides the call overhead


class ActivationSource(Protocol):
    """A sequence of tokens, each with its activations at all layers.

    The sequence is decided by how the source was made: a second one made in the same way hands
    out the same values, also from a `position` in the middle.
    """

    @property
    def layers(self) -> Sequence[int]:
        """The layers, in the order of the first axis of a pass."""
        ...

    @property
    def d_model(self) -> int:
        """Width of the stream."""
        ...

    @property
    def device(self) -> torch.device:
        """Where passes are."""
        ...

    def next_pass(self) -> Float[Tensor, "layer token d_model"] | None:
        """The next tokens without BOS, as many as suits the source; None after the last.

        What was handed out before may be overwritten.
        """
        ...

    def position(self) -> list[int]:
        """Where the next pass begins, as a few integers that only this kind of source reads."""
        ...

    def seek(self, position: Sequence[int]) -> None:
        """Make `position` (of this source, or of one made in the same way) the next pass."""
        ...


class ModelActivations:
    """The source that runs the model over text; the text starts over when it ends.

    A pass is always the same rows of text, so that its values are the same to the bit wherever a
    run is taken up.

    Attributes:
        layers: ascending.
        rows_per_pass: rows of text run at once.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        layers: Iterable[int] | None = None,
        context: int = 128,
        bf16: bool = False,
    ):
        """
        Args:
            model: the model.
            text: see `saekit.activations.documents_of`.
            layers: 0..n_layers; None for all.
            context: tokens per row, BOS included.
            bf16: run the matrix products in bfloat16.

        Raises:
            InputError: a layer out of range.
        """
        self.model, self.bf16, self.context = model, bf16, context
        self.layers = check_layers(model, layers)
        self.rows_per_pass = max(1, FORWARD_TOKENS // context)
        self._rows = TextRows(model, text, context)
        narrow = bf16 and can_run(model)
        self._narrow = NarrowForward(model, self.rows_per_pass * context) if narrow else None

    @property
    def d_model(self) -> int:
        return self.model.d_model

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """Of what passes hold."""
        return torch.bfloat16 if self._narrow else self.model.hf.dtype

    def next_rows(self) -> Rows | None:
        """The rows of the next pass, without running the model; None after the last.

        Raises:
            InputError: no text, or less than one context of it.
        """
        return self._rows.take(self.rows_per_pass)

    def run(self, rows: Rows) -> Float[Tensor, "layer token d_model"]:
        """The activations of rows, BOS positions left out."""
        ids = torch.from_numpy(rows.ids).long().to(self.device)
        keep = (ids != self.model.bos).flatten().nonzero().squeeze(1)
        if self._narrow:
            return self._narrow(ids, self.layers, keep)
        stream = residuals(self.model, ids, self.layers, self.bf16).flatten(1, 2)
        return stream if len(keep) == stream.shape[1] else stream.index_select(1, keep)

    def next_pass(self) -> Float[Tensor, "layer token d_model"] | None:
        rows = self.next_rows()
        return None if rows is None else self.run(rows)

    def position(self) -> list[int]:
        return self._rows.position()

    def seek(self, position: Sequence[int]) -> None:
        self._rows.seek(position)
