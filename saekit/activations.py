"""Residual activations in bulk: from token ids to the stream at every layer, shuffled for training.

The forward pass runs the Hugging Face blocks' own weights without a cache, without attention
patterns and without the unembedding, and stops after the last block that is needed.  Layer
`n_layers` is the output of the last block *before* the final LayerNorm (Hugging Face's last hidden
state is after it).  BOS positions are never handed to a dictionary.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2Block

from saekit.errors import InputError, TrainingError
from saekit.model.loading import LanguageModel
from saekit.text.corpora import read_documents
from saekit.text.packing import pack

Text = str | Path | Iterable[str] | Iterable[Path] | Callable[[], Iterable[str]]
FORWARD_TOKENS = 4096  # tokens per forward pass: fits the caches, hides the call overhead


def _block(block: GPT2Block, hidden: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """One GPT-2 block: hidden + attention, then + MLP."""
    attention, mlp = block.attn, block.mlp
    batch, pos, d_model = hidden.shape

    def split_heads(x: Tensor) -> Tensor:
        return x.view(batch, pos, attention.num_heads, -1).transpose(1, 2).to(hidden.dtype)

    q, k, v = attention.c_attn(block.ln_1(hidden)).split(d_model, dim=2)
    # under autocast attention stays in the stream's type: 16-wide heads are slow in bf16 on CPU
    with torch.autocast(hidden.device.type, enabled=False):
        mixed = F.scaled_dot_product_attention(
            split_heads(q), split_heads(k), split_heads(v), is_causal=True, scale=attention.scaling
        )
    hidden = hidden + attention.c_proj(mixed.transpose(1, 2).reshape(batch, pos, d_model))
    inner = mlp.c_fc(block.ln_2(hidden))
    if isinstance(mlp.act, NewGELUActivation):  # the same function, fused
        inner = F.gelu(inner, approximate="tanh")
    else:
        inner = mlp.act(inner)
    return hidden + mlp.c_proj(inner)


def embed(
    model: LanguageModel, ids: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos d_model"]:
    """The residual stream at layer 0: token plus position embeddings."""
    transformer = model.hf.transformer
    return transformer.wte(ids) + transformer.wpe(torch.arange(ids.shape[1], device=ids.device))


def run_blocks(
    model: LanguageModel, hidden: Float[Tensor, "batch pos d_model"], first: int, last: int
) -> Float[Tensor, "batch pos d_model"]:
    """The stream at layer `last`, from the stream at layer `first`."""
    for block in model.hf.transformer.h[first:last]:
        hidden = _block(cast(GPT2Block, block), hidden)
    return hidden


def unembed(
    model: LanguageModel, hidden: Float[Tensor, "*batch d_model"]
) -> Float[Tensor, "*batch d_vocab"]:
    """Logits from the stream at layer `n_layers`."""
    return model.hf.lm_head(model.hf.transformer.ln_f(hidden))


def check_layers(model: LanguageModel, layers: Iterable[int] | None) -> list[int]:
    """Sorted layers without repeats; None means all of them.

    Raises:
        InputError: a layer that the model does not have.
    """
    if layers is None:
        return list(range(model.n_layers + 1))
    chosen = sorted(set(layers))
    wrong = [layer for layer in chosen if not 0 <= layer <= model.n_layers]
    if wrong or not chosen:
        what = f"Layer {wrong[0]} does not exist" if wrong else "No layer was given"
        raise InputError(f"{what}: {model.id} has layers 0 to {model.n_layers}.")
    return chosen


@torch.no_grad()
def residuals(
    model: LanguageModel,
    ids: Int[Tensor, "batch pos"],
    layers: Iterable[int] | None = None,
    bf16: bool = False,
) -> Float[Tensor, "layer batch pos d_model"]:
    """The residual stream at the given layers, in ascending order of layers.

    Args:
        model: the model.
        ids: token ids as the model reads them (BOS included).
        layers: 0..n_layers; None for all.
        bf16: run the matrix products in bfloat16 (about 0.3% noise; for training only).

    Raises:
        InputError: a layer out of range, or more positions than the context.
    """
    wanted = check_layers(model, layers)
    if ids.shape[1] > model.n_ctx:
        raise InputError(f"{ids.shape[1]} positions do not fit the context of {model.n_ctx}.")
    ids = ids.to(model.device)
    hidden = embed(model, ids)
    out = torch.empty(len(wanted), *hidden.shape, dtype=hidden.dtype, device=hidden.device)
    layer = 0
    with torch.autocast(hidden.device.type, torch.bfloat16, enabled=bf16):
        for slot, target in enumerate(wanted):
            hidden = run_blocks(model, hidden, layer, target)
            layer = target
            out[slot] = hidden
    return out


def open_text(text: Text) -> Callable[[], Iterator[str]]:
    """A function that walks the documents from the start each time it is called.

    Args:
        text: a file or folder (`Path`, or one `str` naming it), several `Path`s, documents
            (strings), or a function that returns documents.  A one-shot iterator can be walked
            once only.
    """
    if isinstance(text, (str, Path)):
        return lambda: read_documents([text])
    if callable(text):
        return lambda: iter(text())
    if isinstance(text, Sequence) and text and all(isinstance(item, Path) for item in text):
        paths: list[str | Path] = [Path(str(item)) for item in text]
        return lambda: read_documents(paths)
    return lambda: iter(text)  # type: ignore[arg-type]


def context_rows(
    model: LanguageModel, documents: Iterable[str], context: int
) -> Iterator[Int[np.ndarray, " context"]]:
    """Packed rows of token ids, documents separated by BOS (see `saekit.text.packing`).

    Raises:
        InputError: `context` is shorter than 2 or longer than the model's.
    """
    if not 2 <= context <= model.n_ctx:
        raise InputError(
            f"A context of {context} tokens is not possible: {model.id} reads 2 to {model.n_ctx}."
        )
    return pack(documents, model.encode_batch, context, model.bos, model.prepend_bos)


def repeated_rows(
    model: LanguageModel, text: Text, context: int
) -> Iterator[Int[np.ndarray, " context"]]:
    """`context_rows`, starting over when the text ends; a one-shot iterator just ends.

    Raises:
        InputError: the text has not one whole context.
    """
    walk = open_text(text)
    while True:
        empty = True
        for row in context_rows(model, walk(), context):
            empty = False
            yield row
        if isinstance(text, Iterator):
            return
        if empty:
            raise InputError(
                f"The text is shorter than one context of {context} tokens; "
                "give more text or a smaller context."
            )


class ShuffledActivations:
    """Token-level shuffled batches of all layers, in the same token order for every layer.

    A preallocated buffer is filled in place with whole contexts, served in random order, and
    filled again.  Everything is a function of (seed, number of the fill, first row of the fill),
    so a run that is resumed there sees exactly the same batches.

    Attributes:
        fill_number: fills made so far; its permutation is drawn from (seed, fill_number).
        first_row: rows of text consumed before the current fill.
        batch: batches of the current fill already served.
    """

    def __init__(
        self,
        model: LanguageModel,
        text: Text,
        layers: list[int],
        context: int,
        batch_tokens: int,
        buffer_tokens: int,
        seed: int = 0,
        bf16: bool = False,
    ):
        self.model, self.layers, self.context, self.bf16 = model, layers, context, bf16
        self.batch_tokens, self.seed = batch_tokens, seed
        self.batches_per_fill = max(1, buffer_tokens // batch_tokens)
        self.served = self.batches_per_fill * batch_tokens
        # whole contexts only: the room of one more makes sure that `served` tokens are there
        size = (len(layers), self.served + context, model.d_model)
        self.buffer = torch.empty(size, dtype=torch.float32, device=model.device)
        self._rows = repeated_rows(model, text, context)
        self.fill_number = self.first_row = self.next_row = self.batch = 0
        self._order = torch.empty(0, dtype=torch.long)

    def skip_to(self, fill_number: int, first_row: int, batch: int) -> None:
        """Go to a position that was read from the attributes of another run, and fill."""
        for _ in range(first_row - self.next_row):
            self._next_row()
        self.next_row, self.fill_number = first_row, fill_number - 1
        self.fill()
        self.batch = batch

    def _next_row(self) -> np.ndarray:
        row = next(self._rows, None)
        if row is None:
            raise TrainingError(
                f"The text ended after {self.next_row} contexts of {self.context} tokens, before "
                "the training did; give more text, or ask for fewer tokens."
            )
        return row

    def fill(self) -> None:
        """Overwrite the buffer with the next contexts and draw a new order.

        Raises:
            InputError: no text, or less than one context of it.
            TrainingError: the text ended, or an activation is not finite.
        """
        self.first_row, self.batch = self.next_row, 0
        self.fill_number += 1
        rows_per_pass = max(1, FORWARD_TOKENS // self.context)
        filled = 0
        while filled < self.served:
            rows: list[np.ndarray] = []
            planned = filled
            while planned < self.served and len(rows) < rows_per_pass:
                rows.append(self._next_row())
                self.next_row += 1
                planned += int((rows[-1] != self.model.bos).sum())
            ids = torch.from_numpy(np.stack(rows)).long().to(self.model.device)
            activations = residuals(self.model, ids, self.layers, self.bf16)
            keep = (ids != self.model.bos).flatten().nonzero().squeeze(1)
            for slot in range(len(self.layers)):
                torch.index_select(
                    activations[slot].flatten(0, 1).float(), 0, keep,
                    out=self.buffer[slot, filled : filled + len(keep)],
                )  # fmt: skip
            filled += len(keep)
        for slot, layer in enumerate(self.layers):
            # the sum is not finite if one of its terms is not
            if not torch.isfinite(self.buffer[slot, :filled].sum()):
                raise TrainingError(
                    f"The activations of layer {layer} are not finite in contexts "
                    f"{self.first_row} to {self.next_row - 1}; earlier checkpoints are intact."
                )
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.fill_number)
        order = torch.randperm(filled, generator=generator)[: self.served]
        self._order = order.to(self.model.device)

    def next_batch(self) -> Int[Tensor, " token"]:
        """Buffer places of the next batch; refills when the buffer is used up."""
        if self.fill_number == 0 or self.batch == self.batches_per_fill:
            self.fill()
        start = self.batch * self.batch_tokens
        self.batch += 1
        return self._order[start : start + self.batch_tokens]

    def layer(
        self, slot: int, places: Int[Tensor, " token"], out: Tensor | None = None
    ) -> Float[Tensor, "token d_model"]:
        """The activations of one layer (by its place in `layers`) at the given buffer places."""
        return torch.index_select(self.buffer[slot], 0, places, out=out)
