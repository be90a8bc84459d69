"""The corpus mean of what every head moves: what mean ablation puts in place of a value.

A head's value LN1(x) W_V + b_V is affine in LN1(x), so means of LN1(x) per layer are enough; one
model pass over the text gives all heads.  Means are per position (rows of `context` tokens, BOS
first) and over all positions; positions that the rows do not reach use the latter.

File: safetensors with `value [layer, head, context, d_head]`, `overall [layer, head, d_head]` and
`count [context]`, and in the header schema_version, model, fingerprint, prepend_bos and tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from saekit.activations import Text, context_rows, documents_of, residuals
from saekit.errors import FormatError, InputError
from saekit.files import atomic_path
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel

SCHEMA_VERSION = 1
CONTEXT = 128
_PASS_TOKENS = 4096


@dataclass(frozen=True)
class HeadMeans:
    """See the module's docstring; `count` is the number of tokens per position."""

    model: str
    fingerprint: str
    prepend_bos: bool
    tokens: int
    value: Float[Tensor, "layer head context d_head"]
    overall: Float[Tensor, "layer head d_head"]
    count: Int[Tensor, " context"]

    def at(self, n: int) -> Float[Tensor, "layer head pos d_head"]:
        """The means at the first `n` positions (tensor indices)."""
        known = self.value[:, :, :n]
        missing = n - known.shape[2]
        return torch.cat([known, self.overall[:, :, None].expand(-1, -1, missing, -1)], 2)

    def check(self, model: LanguageModel) -> None:
        """Raises MismatchError if these are the means of another model, or of other BOS."""
        model.check_made_with(
            "The stored means belong", self.model, self.fingerprint, self.prepend_bos
        )

    def save(self, path: str | Path) -> None:
        """Write the file atomically."""
        header = {
            "schema_version": str(SCHEMA_VERSION),
            "model": self.model,
            "fingerprint": self.fingerprint,
            "prepend_bos": str(int(self.prepend_bos)),
            "tokens": str(self.tokens),
        }
        tensors = {"value": self.value, "overall": self.overall, "count": self.count}
        with atomic_path(path) as temporary:
            save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, temporary, header)

    @classmethod
    def load(cls, path: str | Path) -> "HeadMeans":
        """Read what `save` wrote.

        Raises:
            FormatError: missing, truncated, another version, or not such a file.
        """
        try:
            with safe_open(str(path), "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise FormatError(f"The head means of {path} cannot be read ({error}).") from error
        if header.get("schema_version") != str(SCHEMA_VERSION):
            raise FormatError(
                f"{path} has schema_version {header.get('schema_version')}; this saekit reads "
                f"head means of version {SCHEMA_VERSION}."
            )
        try:
            return cls(
                header["model"], header["fingerprint"], header["prepend_bos"] == "1",
                int(header["tokens"]), tensors["value"], tensors["overall"], tensors["count"],
            )  # fmt: skip
        except (KeyError, ValueError) as error:
            raise FormatError(f"{path} is not a complete file of head means: {error}.") from error


def _stacks(rows: Iterator[np.ndarray], context: int, tokens: int) -> Iterator[np.ndarray]:
    """Stacks of rows until `tokens` tokens were handed out."""
    rows = islice(rows, max(1, tokens // context))
    while stack := list(islice(rows, max(1, _PASS_TOKENS // context))):
        yield np.stack(stack)


@torch.no_grad()
def head_means(
    model: LanguageModel, text: Text, tokens: int = 100_000, context: int = CONTEXT
) -> HeadMeans:
    """Mean value of every head per position and over all positions; BOS counts at position 0 only.

    Args:
        text: documents, or a function that opens them.
        tokens: how many to read, BOS included.
        context: length of the rows, at most the model's.

    Raises:
        InputError: fewer than 1 token asked for, a wrong context, or a text shorter than one.
    """
    if tokens < 1:
        raise InputError(f"Means of {tokens} tokens do not exist: ask for at least 1.")
    context = min(context, model.n_ctx)
    exact = ExactModel(model)
    sums = torch.zeros(model.n_layers, context, model.d_model, dtype=torch.float64)
    count = torch.zeros(context, dtype=torch.long)
    rows = context_rows(model, documents_of(text), context)
    with tqdm(total=tokens, unit=" tokens", desc="means", leave=False) as bar:
        for stack in _stacks(rows, context, tokens):
            ids = torch.from_numpy(stack.astype(np.int64))
            counted = ids != model.bos
            counted[:, 0] = True
            streams = residuals(model, ids, range(model.n_layers))
            for m, (stream, w) in enumerate(zip(streams, exact.blocks, strict=True)):
                normed, _ = exact.norm(stream.to(exact.W_E), w.gamma1, w.beta1)
                weight = counted[..., None].to(normed)
                sums[m] += (normed * weight).sum(0).double().cpu()
            count += counted.sum(0)
            bar.update(ids.numel())
    if not int(count[0]):
        raise InputError(
            f"The text is shorter than one context of {context} tokens: give more text."
        )
    first = int(model.prepend_bos)
    per_position = sums / count.clamp(min=1)[:, None]
    overall = sums[:, first:].sum(1) / count[first:].sum().clamp(min=1)
    # a position at which every row had BOS has no mean of its own
    per_position = torch.where(count[:, None] > 0, per_position, overall[:, None])
    W_V = torch.stack([w.W_V for w in exact.blocks]).double().cpu()
    b_V = torch.stack([w.b_V for w in exact.blocks]).double().cpu()
    value = torch.einsum("lpd,lhde->lhpe", per_position, W_V) + b_V[:, :, None]
    return HeadMeans(
        model=model.id, fingerprint=model.fingerprint, prepend_bos=model.prepend_bos,
        tokens=int(count.sum()), value=value.float(),
        overall=(torch.einsum("ld,lhde->lhe", overall, W_V) + b_V).float(), count=count,
    )  # fmt: skip
