"""The source that reads an activation cache: no model is run.

Several runs (other layers, other k, other widths) can train from one file.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from saekit.activations.cache.cache_file import (
    PRECISIONS,
    dataset,
    from_stored,
    open_cache,
    written_shards,
)
from saekit.errors import FormatError, InputError, MismatchError
from saekit.model.loading import LanguageModel

READ_TOKENS = 4096  # tokens per pass: 6 MB per layer of width 768


class CachedActivations:
    """The tokens of the whole shards of a cache, once, in their order.

    Attributes:
        path: the file.
        header: what it holds.
        layers: the layers handed out.
        n_tokens: tokens there are (of a cache that is not complete: of its whole shards).
    """

    def __init__(
        self,
        path: str | Path,
        layers: Sequence[int] | None = None,
        device: str | torch.device = "cpu",
    ):
        """
        Args:
            path: the cache.
            layers: some of those it holds; None for all.
            device: where passes are put.

        Raises:
            InputError: there is none, or another process writes it now.
            FormatError: truncated, no activation cache, or of another version.
            MismatchError: a layer that it does not hold.
        """
        self.path, self.device = Path(path), torch.device(device)
        self._file, self.header = open_cache(self.path)
        self.layers = list(self.header.layers if layers is None else layers)
        self.header.check_layers(self.path, self.layers)
        shards = written_shards(self._file)
        self.n_tokens = min(shards * self.header.shard_tokens, self.header.n_tokens)
        self._token = 0
        size = (len(self.layers), READ_TOKENS, self.d_model)
        self._memory = np.empty(size, PRECISIONS[self.header.precision])

    @property
    def d_model(self) -> int:
        return self.header.d_model

    def check(
        self,
        model: LanguageModel,
        context: int | None = None,
        tokens: int | None = None,
        text: str = "",
        exact: bool = False,
    ) -> None:
        """Refuse a cache that is not of this run.

        Args:
            model: the model whose dictionaries are trained.
            context: tokens per row; None for any.
            tokens: how many the run needs; None for any number.
            text: the name of the text; "" for any.
            exact: refuse activations that were computed or kept in bfloat16.

        Raises:
            MismatchError: another model, BOS, context, text or precision (both values are named).
            InputError: too few tokens.
        """
        self.header.check_model(self.path, model, context)
        self.header.check_text(self.path, text)
        if exact and (self.header.model_bf16 or self.header.precision != "float32"):
            raise MismatchError(
                f"{self.path} holds activations in bfloat16; this run asks for float32: give "
                "another --cache, or leave out --float32."
            )
        if tokens is not None and self.n_tokens < tokens:
            whole = "" if self.n_tokens == self.header.n_tokens else ", its writing was cut short"
            raise InputError(
                f"{self.path} holds {self.n_tokens} tokens{whole}; {tokens} are needed: "
                "ask for fewer --tokens, or write a larger cache."
            )

    def next_pass(self) -> Float[Tensor, "layer token d_model"] | None:
        """The next tokens; what the pass before held is overwritten.

        Raises:
            FormatError: the file cannot be read.
        """
        first, end = self._token, min(self._token + READ_TOKENS, self.n_tokens)
        if first == end:
            return None
        try:
            for slot, layer in enumerate(self.layers):
                stored = dataset(self._file, f"layers/{layer}")
                stored.read_direct(self._memory[slot], np.s_[first:end], np.s_[: end - first])
        except OSError as error:
            raise FormatError(f"{self.path} cannot be read at token {first} ({error}).") from error
        self._token = end
        return from_stored(self._memory[:, : end - first]).to(self.device)

    def position(self) -> list[int]:
        return [self._token]

    def seek(self, position: Sequence[int]) -> None:
        self._token = position[0]

    def close(self) -> None:
        self._file.close()
