"""Training speed: saekit beside SAELens and sparsify, same model, same tokens, same machine.

    python benchmarks/train_throughput.py [--size smoke|tiny|124m|gpt2-24k]
        [--peer saelens,sparsify|none] [--device cpu|cuda] [--repeat 3] [--threads 2]
        [--float32] [--quality] [--quality-tokens 204800] [--quality-lr 0.0003,0.001,0.003]
        [--profile FOLDER]

prints one JSON document.  Every side trains one TopK dictionary per residual point of one GPT-2
with random weights on the same random token ids: same width, k, batch, number of tokens, and Adam
with the same learning rate.  Each run has a process of its own; the sides take turns, `--repeat`
times.  The time is that of model forward passes, buffer and optimiser steps, filling the buffer
included; not of making models and dictionaries, compiling kernels, or writing files.  On a GPU four
batches are trained before the clock starts.  Ratios are of medians over the repeats.

Each library is driven through its own trainer (`training_sides.py`), which differs in this:

saekit    `saekit.train`.  Buffer of four batches, in bfloat16, served 4 refills mixed.  All
          products are of bfloat16 numbers, but on CPUs with AVX512-VNNI features are chosen by
          8-bit ones (the chosen values are computed again); on GPUs the chosen values and
          gradients are float32.  Weights, sums and Adam in float32.  `--float32` makes all float32.
          Unit decoder rows; starts at the data's mean.
SAELens   `MultiSAETrainingRunner`.  Buffer of four batches in float32, half of it kept at each
          refill.  All float32 on CPU; on a GPU autocast to bfloat16 for model and dictionaries.
          Clips gradients, counts firings; starts with b_dec 0 and decoder rows of norm 0.1.  Reads
          the model as a TransformerLens HookedTransformer with the same weights.
sparsify  `Trainer` with hookpoints "drop" (the embeddings) and every block.  No buffer and no
          shuffling: a batch is consecutive tokens of a few rows, and no token is computed without
          being trained on.  All float32 on CPU; on a GPU the model and, by its autocast, the
          dictionaries in bfloat16.  Unit decoder rows; starts at the data's mean.  wandb and saving
          are off, AuxK is off (its default).  On CPU its Triton decoder is switched off, as it
          provides for, where Triton is installed without a GPU.

Random ids give no meaningful features; `fvu` on fresh ids only shows that something was trained.
`limit_tokens_per_s` is the rate of a matrix product of the encoder's shape, measured in the same
process, divided by the FLOPs that a step needs at least (multiply and add are two): per residual
point 2 d F for the encoder and 8 d k for decoding and gradients, plus the model's blocks.

`--quality` trains all sides on the bundled model as well, on the same rows of the built-in text
with warm-up and decay, once for each learning rate, and gives the FVU of held-out activations
(float32, mean over residual points); the best learning rate of each side counts.  Schedules are
saekit's 2% warm-up and 40% decay for saekit and SAELens; sparsify always decays over the whole run.

`--profile` measures nothing: it trains 12 batches of saekit under PyTorch's profiler and writes
FOLDER/saekit.txt (time by operation) and FOLDER/saekit.json (a trace for chrome://tracing).
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

MODULES = {"saelens": ("sae_lens", "sae-lens"), "sparsify": ("sparsify", "eai-sparsify")}
SIZES: dict[str, dict[str, Any]] = {
    "smoke": {
        "n_layers": 2, "n_heads": 2, "d_model": 32, "d_vocab": 512, "context": 64,
        "d_sae": 256, "k": 8, "batch_tokens": 512, "tokens": 8192,
    },
    "tiny": {
        "n_layers": 12, "n_heads": 12, "d_model": 192, "d_vocab": 8192, "context": 128,
        "d_sae": 1536, "k": 16, "batch_tokens": 2048, "tokens": 102_400,
    },
    "124m": {
        "n_layers": 12, "n_heads": 12, "d_model": 768, "d_vocab": 50_257, "context": 256,
        "d_sae": 6144, "k": 32, "batch_tokens": 2048, "tokens": 16_384,
    },
    "gpt2-24k": {  # for a GPU
        "n_layers": 12, "n_heads": 12, "d_model": 768, "d_vocab": 50_257, "context": 256,
        "d_sae": 24_576, "k": 32, "batch_tokens": 8192, "tokens": 1_048_576,
    },
}  # fmt: skip
LR = 3e-4
QUALITY: dict[str, Any] = {"d_sae": 1536, "k": 16, "batch_tokens": 1024, "context": 128}
QUALITY_BUFFER = 65_536
HELD_OUT = 16_384
WARM_BATCHES = 4
PROFILED_BATCHES = 12


def quality_size(smoke: bool, tokens: int) -> dict[str, Any]:
    """Sizes of the training on the bundled model."""
    return {**QUALITY, "tokens": tokens, **({"d_sae": 256, "k": 8} if smoke else {})}


def speed_task(size: dict[str, Any], device: str, narrow: bool) -> tuple[Any, Any]:
    """The task on random weights, and fresh ids to look at its result."""
    import torch
    from training_sides import Task
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size["d_vocab"], n_positions=size["context"], n_embd=size["d_model"],
        n_layer=size["n_layers"], n_head=size["n_heads"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval().to(device)  # pyright: ignore[reportArgumentType]
    rows = 2 * size["tokens"] // size["context"]
    ids = torch.randint(1, size["d_vocab"], (rows + 8, size["context"]))
    task = Task(
        hf, ids[8:], None, size["d_sae"], size["k"], size["tokens"], size["batch_tokens"],
        4 * size["batch_tokens"], LR, narrow,
    )  # fmt: skip
    return task, ids[:8]


def quality_task(size: dict[str, Any], lr: float, device: str, narrow: bool) -> tuple[Any, Any]:
    """The task on the bundled model, and rows of the held-out text."""
    import numpy as np
    import torch
    from training_sides import Task

    from saekit.activations import context_rows
    from saekit.model.loading import load_model
    from saekit.text.sources import open_text

    model = load_model("gpt2-mini", device)

    def rows(tokens: int, held_out: bool) -> Any:
        packed = context_rows(model, open_text(held_out=held_out), size["context"])
        wanted = tokens * 11 // 10 // size["context"] + 1  # a tenth for BOS
        return torch.from_numpy(np.stack(list(islice(packed, wanted)))).long()

    ids = rows(size["tokens"] + 2 * QUALITY_BUFFER, held_out=False)
    task = Task(
        model.hf, ids, model.bos, size["d_sae"], size["k"], size["tokens"], size["batch_tokens"],
        QUALITY_BUFFER, lr, narrow, warmup=0.02, decay=0.4,
    )  # fmt: skip
    return task, rows(HELD_OUT, held_out=True)


def product_rates(task: Any, device: str) -> dict[str, float]:
    """FLOP/s of the encoder's product, the best of several, per type of its operands."""
    import torch

    rates = {}
    tokens, d_in, d_sae = task.batch_tokens, task.hf.config.n_embd, task.d_sae
    for dtype in (torch.float32, torch.bfloat16):
        x, W = (torch.randn(n, d_in, device=device).to(dtype) for n in (tokens, d_sae))
        best, spent = float("inf"), 0.0
        while spent < 0.5:
            started = time.perf_counter()
            torch.nn.functional.linear(x, W)
            if device == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
            best, spent = min(best, seconds), spent + seconds
        rates[str(dtype).removeprefix("torch.")] = 2 * tokens * d_in * d_sae / best
    return rates


def flops_per_token(size: dict[str, Any]) -> float:
    """The least that a token needs; see the module's docstring."""
    d, layers = size["d_model"], size["n_layers"]
    dictionaries = (layers + 1) * (2 * d * size["d_sae"] + 8 * d * size["k"])
    return dictionaries + layers * (24 * d * d + 4 * size["context"] * d)


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One run of one side, in this process."""
    import torch
    from training_sides import SIDES, Clock

    from saekit.activations import residuals
    from saekit.model.loading import LanguageModel

    if options.threads:
        torch.set_num_threads(options.threads)
    device, narrow, run = options.device, not options.float32, SIDES[options.worker]
    if options.quality:
        size = quality_size(options.size == "smoke", options.quality_tokens)
        task, fresh = quality_task(size, float(options.quality_lr), device, narrow)
    else:
        size = SIZES[options.size]
        task, fresh = speed_task(size, device, narrow)
    keep = (fresh != task.bos).flatten() if task.bos is not None else slice(None)
    # before training: sparsify's side may make the model narrow
    streams = residuals(LanguageModel("", task.hf, None), fresh).flatten(1, 2)[:, keep]
    rates = {} if options.quality else product_rates(task, device)
    clock = Clock(torch.device(device))
    with tempfile.TemporaryDirectory() as folder:
        if device == "cuda":
            from dataclasses import replace

            warm = replace(task, tokens=WARM_BATCHES * task.batch_tokens)
            run(warm, clock, Path(folder) / "warm")
        rebuild = run(task, clock, Path(folder))
    with torch.no_grad():
        fvu = [
            ((x - f(x)).square().sum() / (x - x.mean(0)).square().sum()).item()
            for x, f in zip(streams.float(), rebuild, strict=True)
        ]
    load = os.getloadavg()[0]
    return {**clock.figures, "fvu": fvu, "product_flops_per_s": rates, "load": round(load, 1)}


def profile(options: argparse.Namespace) -> None:
    """Where saekit's time goes, as files."""
    import torch
    from torch.profiler import ProfilerActivity
    from training_sides import Clock, run_saekit

    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    size = SIZES[options.size]
    short = {**size, "tokens": min(size["tokens"], PROFILED_BATCHES * size["batch_tokens"])}
    task, _ = speed_task(short, options.device, not options.float32)
    options.profile.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock(torch.device(options.device))
        run_saekit(task, clock, Path(folder) / "warm")
        with torch.profiler.profile(activities=activities) as found:
            run_saekit(task, clock, Path(folder))
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    table = found.key_averages().table(sort_by=order, row_limit=40)
    (options.profile / "saekit.txt").write_text(table, encoding="utf-8")
    found.export_chrome_trace(str(options.profile / "saekit.json"))


def start(options: argparse.Namespace, side: str, *extra: str) -> dict[str, Any]:
    """`work` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [
            sys.executable, __file__, "--worker", side, "--size", options.size,
            "--device", options.device, "--result", str(result), *extra,
            *(["--threads", str(options.threads)] if options.threads else []),
            *(["--float32"] if options.float32 else []),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not result.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
            sys.exit(f"The run of {side} failed: {(errors or lines)[-1]}")
        return json.loads(result.read_text(encoding="utf-8"))


def middle(runs: list[dict[str, Any]], name: str) -> float:
    return median(run[name] for run in runs)


def speed(options: argparse.Namespace, sides: list[str]) -> dict[str, Any]:
    """All repeats of all sides, and what they come to."""
    size, runs = SIZES[options.size], {side: [] for side in sides}
    for repeat in range(options.repeat):
        for place in range(len(sides)):  # another side is first each time
            side = sides[(place + repeat) % len(sides)]
            runs[side].append(start(options, side))
            print(f"{side}: {runs[side][-1]['wall_s']:.2f} s", file=sys.stderr)
    points, tokens = size["n_layers"] + 1, size["tokens"]
    trained = tokens // size["batch_tokens"] * size["batch_tokens"]
    report: dict[str, Any] = {"size": options.size, **size, "lr": LR}
    for side, found in runs.items():
        wall, cpu = middle(found, "wall_s"), middle(found, "cpu_s")
        limits = {
            name: median(run["product_flops_per_s"][name] for run in found) / flops_per_token(size)
            for name in found[0]["product_flops_per_s"]
        }
        report[side] = {
            "tokens_per_s": trained / wall,
            "layer_tokens_per_s": trained * points / wall,
            "layer_tokens_per_cpu_s": trained * points / cpu,
            **{n: middle(found, n) for n in found[0] if n.startswith("peak")},
            "fvu": median(sum(run["fvu"]) / points for run in found),
            "limit_tokens_per_s": limits,
            "share_of_limit": {name: trained / wall / limit for name, limit in limits.items()},
            "runs": [{n: v for n, v in run.items() if n != "fvu"} for run in found],
        }
    report["ratios"] = {
        side: {
            unit: report["saekit"][f"layer_tokens_per_{unit}"]
            / report[side][f"layer_tokens_per_{unit}"]
            for unit in ("s", "cpu_s")
        }
        for side in sides[1:]
    }
    return report


def quality(options: argparse.Namespace, sides: list[str]) -> dict[str, Any]:
    """Held-out FVU after equal tokens on the bundled model, per side and learning rate."""
    report: dict[str, Any] = quality_size(options.size == "smoke", options.quality_tokens)
    report["model"], report["lr"] = "gpt2-mini", {}
    for side in sides:
        rows = {}
        for lr in options.quality_lr.split(","):
            extra = ["--quality", "--quality-tokens", str(options.quality_tokens)]
            found = start(options, side, *extra, "--quality-lr", lr)
            rows[lr] = {"fvu": sum(found["fvu"]) / len(found["fvu"]), "fvu_by_point": found["fvu"]}
            print(f"{side}, lr {lr}: held-out FVU {rows[lr]['fvu']:.4f}", file=sys.stderr)
        best = min(rows, key=lambda lr: rows[lr]["fvu"])
        report[side] = {**rows[best], "by_lr": {lr: row["fvu"] for lr, row in rows.items()}}
        report["lr"][side] = float(best)
    return report


def sides_of(peers: list[str]) -> list[str]:
    """saekit and the peers asked for; leaves with a sentence where one cannot be had."""
    names = [name for part in peers for name in part.split(",") if name != "none"]
    for name in names:
        if name not in MODULES:
            sys.exit(f'There is no peer "{name}"; choose from {", ".join(MODULES)}, none.')
        module, package = MODULES[name]
        if find_spec(module) is None:
            sys.exit(
                f"The peer {name} is not installed: pip install {package}, "
                "or choose another --peer."
            )
    return ["saekit", *dict.fromkeys(names)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--peer", action="append", help="saelens, sparsify, none (several: a,b)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: all cores")
    parser.add_argument("--float32", action="store_true", help="no bfloat16 in saekit either")
    parser.add_argument("--quality", action="store_true", help="FVU on the bundled model, too")
    parser.add_argument("--quality-tokens", type=int, default=204_800)
    parser.add_argument("--quality-lr", default="0.0003,0.001,0.003")
    parser.add_argument("--profile", type=Path, metavar="FOLDER", help="profile saekit instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        result = json.dumps(work(options))
        options.result.write_text(result, encoding="utf-8")
        return
    sides = sides_of(options.peer or ["saelens"])
    if options.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            sys.exit("PyTorch finds no CUDA device here: use --device cpu.")
    if options.profile:
        profile(options)
        return
    report = speed(options, sides)
    report["machine"] = {
        "device": options.device,
        "threads": options.threads,
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "float32": options.float32,
    }
    if options.quality:
        report["quality"] = quality(options, sides)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
