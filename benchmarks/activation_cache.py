"""Tokens per second into the shuffle buffer: from the model, and from an activation cache.

    python benchmarks/activation_cache.py [--model gpt2-mini] [--tokens 65536] [--threads 2]

The cache is written to a temporary folder (in `--folder`) and read right away, so a small one comes
from the operating system's memory, not from the disk.  "buffer" is a source that costs nothing:
what shuffling itself takes.  Prints one JSON document.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from saekit.activations import (
    ActivationSource,
    CachedActivations,
    ModelActivations,
    ShuffleBuffer,
    write_cache,
)
from saekit.model.loading import load_model
from saekit.text.sources import open_text

BATCH_TOKENS, BUFFER_TOKENS, CONTEXT = 1024, 65_536, 128


class Constant:
    """The same pass again and again."""

    def __init__(self, activations: torch.Tensor):
        self.activations = activations
        self.layers: Sequence[int] = range(len(activations))
        self.d_model, self.device = activations.shape[2], activations.device

    def next_pass(self) -> torch.Tensor:
        return self.activations

    def position(self) -> list[int]:
        return []

    def seek(self, position: Sequence[int]) -> None:
        pass


def rate(source: ActivationSource, tokens: int) -> float:
    """Tokens per second that the buffer reads while it serves `tokens`, every layer gathered."""
    started = time.perf_counter()
    dtype = torch.bfloat16
    buffer = ShuffleBuffer(source, BATCH_TOKENS, BUFFER_TOKENS, dtype=dtype, tokens=tokens)
    x = torch.empty(BATCH_TOKENS, source.d_model, dtype=dtype, device=source.device)
    for _ in range(tokens // BATCH_TOKENS):
        places = buffer.next_batch()
        for slot in range(len(buffer.layers)):
            buffer.layer(slot, places, out=x)
    return tokens / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="gpt2-mini")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load_model(args.model)

    def source() -> ModelActivations:
        return ModelActivations(model, open_text, None, CONTEXT, bf16=True)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        path = Path(folder) / "cache.h5"
        tokens = args.tokens // BATCH_TOKENS * BATCH_TOKENS
        one_pass = source().next_pass()
        assert one_pass is not None
        figures = {
            "buffer": rate(Constant(one_pass), tokens),
            "model": rate(source(), tokens),
        }
        started = time.perf_counter()
        write_cache(model, open_text, path, tokens, context=CONTEXT, bf16=True)
        figures["write_cache"] = tokens / (time.perf_counter() - started)
        figures["cache"] = rate(CachedActivations(path), tokens)
        size = path.stat().st_size
    document = {
        "model": model.id,
        "layers": model.n_layers + 1,
        "d_model": model.d_model,
        "tokens": tokens,
        "threads": args.threads,
        "bytes_per_token": size / tokens,
        "tokens_per_second": {name: round(value) for name, value in figures.items()},
        "cache_against_model": round(figures["cache"] / figures["model"], 2),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
