"""Training speed: saekit against SAELens' MultiSAETrainingRunner, same sizes, same machine.

Both train one TopK dictionary per residual point of a randomly initialised GPT-2-shaped model on
random token ids (which give no meaningful features; the explained variance on fresh ids is a
sanity figure).  Each runs in a process of its own; the time covers the model's forward passes,
the shuffle buffer and all optimiser steps, for saekit also writing the result.

    python benchmarks/train_throughput.py [--size smoke|tiny] [--threads 2] [--only saekit]

prints one JSON document: layer-tokens per second of wall time and of CPU time, and the ratios.
saekit selects features with a bfloat16 product and runs the model in bfloat16 (its defaults);
SAELens runs in float32 (its default).  Weights, sums and Adam are float32 in both.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {
    "smoke": {
        "n_layers": 2, "n_heads": 2, "d_model": 32, "d_vocab": 512, "context": 64,
        "d_sae": 256, "k": 8, "batch_tokens": 512, "tokens": 8192,
    },
    "tiny": {
        "n_layers": 12, "n_heads": 12, "d_model": 192, "d_vocab": 8192, "context": 128,
        "d_sae": 1536, "k": 16, "batch_tokens": 2048, "tokens": 102_400,
    },
}  # fmt: skip
LR = 3e-4


def measured(run) -> dict:
    """Wall and CPU seconds and peak memory of `run()`, which returns the explained variance."""
    cpu, wall = time.process_time(), time.perf_counter()
    explained_variance = run()
    return {
        "wall_s": time.perf_counter() - wall,
        "cpu_s": time.process_time() - cpu,
        "peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "finish": explained_variance,
    }


class IdTokenizer:
    """A tokenizer for documents that are written as token ids."""

    bos_token_id = 0

    def __call__(self, texts, add_special_tokens=False):
        return {"input_ids": [[int(word) for word in text.split()] for text in texts]}


def run_saekit(size: dict) -> dict:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.activations import residuals
    from saekit.model.loading import LanguageModel
    from saekit.sae.config import TrainConfig
    from saekit.sae.training import train

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=size["d_vocab"], n_positions=size["context"], n_embd=size["d_model"],
        n_layer=size["n_layers"], n_head=size["n_heads"], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LanguageModel("random", GPT2LMHeadModel(config).eval(), IdTokenizer())
    rows = 2 * size["tokens"] // size["context"]
    ids = torch.randint(1, size["d_vocab"], (rows, size["context"]))
    documents = [" ".join(map(str, row)) for row in ids.tolist()]
    settings = TrainConfig(
        d_sae=size["d_sae"], k=size["k"], tokens=size["tokens"], context=size["context"],
        batch_tokens=size["batch_tokens"], buffer_tokens=4 * size["batch_tokens"], lr=LR,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        result = measured(lambda: train(model, documents, settings, Path(folder) / "set"))
    dictionaries = result.pop("finish")
    fresh = torch.randint(1, size["d_vocab"], (8, size["context"]))
    streams = residuals(model, fresh)[:, :, 1:].flatten(1, 2)
    result["explained_variance"] = mean_explained_variance(
        (x, d.decode(d.encode(x))) for x, d in zip(streams, dictionaries, strict=True)
    )
    return result


def run_saelens(size: dict) -> dict:
    import torch
    from datasets import Dataset
    from sae_lens import LoggingConfig
    from sae_lens.multi_sae_training_runner import (
        MultiSAETrainingRunner,
        MultiSAETrainingRunnerConfig,
    )
    from sae_lens.saes.topk_sae import TopKTrainingSAEConfig
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    torch.manual_seed(0)
    model = HookedTransformer(
        HookedTransformerConfig(
            n_layers=size["n_layers"], d_model=size["d_model"], n_ctx=size["context"],
            d_head=size["d_model"] // size["n_heads"], n_heads=size["n_heads"],
            d_vocab=size["d_vocab"], act_fn="gelu_new", normalization_type="LN", device="cpu",
        )
    )  # fmt: skip
    hooks = [f"blocks.{layer}.hook_resid_pre" for layer in range(size["n_layers"])]
    hooks.append(f"blocks.{size['n_layers'] - 1}.hook_resid_post")
    names = {hook.replace(".", "_"): hook for hook in hooks}
    rows = 2 * size["tokens"] // size["context"]
    ids = torch.randint(1, size["d_vocab"], (rows, size["context"]))
    dataset = Dataset.from_dict({"tokens": ids.tolist()})
    config = MultiSAETrainingRunnerConfig(
        saes={
            name: TopKTrainingSAEConfig(d_in=size["d_model"], d_sae=size["d_sae"], k=size["k"])
            for name in names
        },
        hook_names=names,
        model_name="random",
        context_size=size["context"],
        # counted in contexts; the default holds less than a batch and is refused
        n_batches_in_buffer=4 * size["batch_tokens"] // size["context"],
        store_batch_size_prompts=max(1, size["batch_tokens"] // size["context"]),
        training_tokens=size["tokens"],
        train_batch_size_tokens=size["batch_tokens"],
        lr=LR,
        prepend_bos=False,
        streaming=False,
        logger=LoggingConfig(log_to_wandb=False),
        checkpoint_path=None,
        output_path=None,
    )
    runner = MultiSAETrainingRunner(config, override_dataset=dataset, override_model=model)
    result = measured(runner.run)
    saes = result.pop("finish")
    fresh = torch.randint(1, size["d_vocab"], (8, size["context"]))
    with torch.no_grad():
        _, cache = model.run_with_cache(fresh, names_filter=hooks)
        result["explained_variance"] = mean_explained_variance(
            (x, saes[name].decode(saes[name].encode(x)))
            for name, hook in names.items()
            for x in [cache[hook][:, 1:].flatten(0, 1)]
        )
    return result


def mean_explained_variance(pairs) -> float:
    values = [
        1 - (x - rebuilt).square().sum().item() / (x - x.mean(0)).square().sum().item()
        for x, rebuilt in pairs
    ]
    return sum(values) / len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=("saekit", "saelens"))
    parser.add_argument("--worker", choices=("saekit", "saelens"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    size = SIZES[options.size]
    if options.worker:
        import torch

        torch.set_num_threads(options.threads)
        print(json.dumps((run_saekit if options.worker == "saekit" else run_saelens)(size)))
        return
    layer_tokens = size["tokens"] * (size["n_layers"] + 1)
    report: dict = {"size": options.size, **size, "threads": options.threads}
    for name in [options.only] if options.only else ["saekit", "saelens"]:
        command = [sys.executable, __file__, "--worker", name, "--size", options.size]
        done = subprocess.run(
            [*command, "--threads", str(options.threads)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        result = json.loads(done.stdout.splitlines()[-1])
        result["layer_tokens_per_s"] = layer_tokens / result["wall_s"]
        result["layer_tokens_per_cpu_s"] = layer_tokens / result["cpu_s"]
        report[name] = result
    if not options.only:
        for unit in ("s", "cpu_s"):
            key = f"layer_tokens_per_{unit}"
            report[f"ratio_{unit}"] = report["saekit"][key] / report["saelens"][key]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
