"""The time of each stage of a training step, one JSON line per stage.

By CUDA events on a GPU, by the clock without one.  A stage that fails gives its error and the next
one runs.  `TB_s` and `TFLOP_s` count what the stage must move and multiply at least.

    python benchmarks/gpu/stages.py            # gpt2-24k: 8,192 tokens, 24,576 features of 768
    python benchmarks/gpu/stages.py --small    # on any machine, in seconds
"""

import argparse
import json
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from saekit.sae.kernels import kernels_for
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.layer import LayerTraining

LAYERS = 13  # of GPT-2, which all train on a token
REPEATS = 10
SIZES = {False: (8192, 768, 24576, 32), True: (256, 64, 1024, 8)}  # tokens, d_in, d_sae, k


def milliseconds(run: Callable[[], object], device: torch.device) -> float:
    """The median of some runs, after two that do not count."""
    for _ in range(2):
        run()
    times = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run()
            last.record()
            last.synchronize()
            times.append(first.elapsed_time(last))
        else:
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
    return median(times)


class Stages:
    """Measures and prints."""

    def __init__(self, device: torch.device, tokens: int):
        self.device, self.tokens = device, tokens

    def __call__(
        self, name: str, run: Callable[[], object], bytes_: int = 0, flops: int = 0
    ) -> None:
        try:
            ms = milliseconds(run, self.device)
        except Exception as error:  # the stages after it are wanted all the same
            print(json.dumps({"stage": name, "error": f"{type(error).__name__}: {error}"[:300]}))
            return
        row = {
            "stage": name,
            "ms": round(ms, 4),
            "us_per_token_all_layers": round(ms * 1e3 * LAYERS / self.tokens, 3),
            "TB_s": round(bytes_ / ms / 1e9, 3),
            "TFLOP_s": round(flops / ms / 1e9, 3),
        }
        print(json.dumps(row), flush=True)


def training(size: tuple[int, int, int, int], device: torch.device, dead: int) -> LayerTraining:
    """One layer; features are dead after so many tokens."""
    tokens, d_in, d_sae, k = size
    config = TrainConfig(
        d_sae=d_sae, k=k, tokens=100 * tokens, batch_tokens=tokens, dead_tokens=dead
    )
    return LayerTraining(0, d_in, config, device)


def measure(size: tuple[int, int, int, int], device: torch.device) -> None:
    """All stages of a step of one layer."""
    tokens, d_in, d_sae, k = size
    generator = torch.Generator(device=device).manual_seed(0)
    timed, kernels = Stages(device, tokens), kernels_for(device)
    x = torch.randn(tokens, d_in, device=device, generator=generator).bfloat16()
    layer = training(size, device, dead=10**9)
    layer.fit_input(x)
    p, wide = layer.parameters, x.float()
    pre = torch.empty(tokens, d_sae, device=device, dtype=torch.bfloat16)
    bias, weights = p["b_enc"].bfloat16(), p["W_enc"].bfloat16()
    timed(
        "encoder", lambda: torch.addmm(bias, x, weights.T, out=pre),
        2 * tokens * d_sae, 2 * tokens * d_in * d_sae,
    )  # fmt: skip
    timed("largest", lambda: kernels.largest(pre, k), 2 * tokens * d_sae)
    timed("torch.topk", lambda: pre.topk(k, dim=1, sorted=False), 2 * tokens * d_sae)
    pairs = kernels.largest(pre, k)
    ends, scales = [d_sae], [-2 / x.numel()]

    def forward_backward():
        return kernels.forward_backward(
            wide, wide, p["W_enc"], p["b_enc"], p["W_dec"], pairs, ends, scales
        )

    timed("forward_backward", forward_backward, tokens * k * 3 * d_in * 4)
    result = forward_backward()
    gradients: dict[str, Tensor] = {n: torch.empty_like(p[n]) for n in ("W_enc", "b_enc", "W_dec")}
    timed(
        "weight_gradients",
        lambda: kernels.weight_gradients(wide, result, pairs, ends, gradients),
        tokens * k * 2 * d_in * 4 + 8 * d_sae * d_in,
    )
    timed("sort of pairs", lambda: pairs.features.sort(stable=True))
    timed("owners of pairs", pairs.owners)
    timed(
        "combine_rows", lambda: kernels.combine_rows(p["W_enc"], gradients["b_enc"]),
        4 * d_sae * d_in,
    )  # fmt: skip
    centred, narrow = torch.empty_like(wide), torch.empty_like(x)
    timed(
        "centre_rows", lambda: kernels.centre_rows(x, layer.scale, p["b_dec"], centred, narrow),
        8 * tokens * d_in,
    )  # fmt: skip
    timed("whole step", lambda: layer.step(x))
    dying = training(size, device, dead=2 * tokens)
    dying.fit_input(x)
    dying.parameters["b_enc"][: d_sae // 3] = -50
    for _ in range(4):
        dying.step(x)
    timed("whole step, a third and more dead", lambda: dying.step(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="sizes for a quick look")
    small = parser.parse_args().small
    measure(SIZES[small], torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
