"""Time and memory of scoring all heads for one relation, beside a naive loop; prints JSON.

    python benchmarks/head_scores.py [--threads 2] [--repeat 3]

Two models: gpt2-mini with its name pairs, and random weights of GPT-2 small's shape (12 x 12
heads, d_model 768, vocabulary 50,257) with 132 pairs, as many as the published name list leaves
there.  The naive loop goes through layers, heads and pairs one at a time; it is run on the heads
of one layer and multiplied by the number of layers.  Each model is measured in its own process, so
that the peak memory is its own; it includes torch, the model and the fingerprint.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time

NAIVE_LAYER = 1  # any but 0, which has no MLP in front
GPT2_PAIRS = 132


def naive_seconds(exact, source, target, k: int) -> tuple[float, int]:
    """Seconds of the loop over the heads and pairs of one layer, and its hits."""
    from saekit.heads.weights import head_input

    start, hits = time.perf_counter(), 0
    block = exact.blocks[NAIVE_LAYER]
    for head in range(exact.n_heads):
        for a, b in zip(source, target, strict=True):
            read = head_input(exact, a[None], NAIVE_LAYER)[0]
            logits = read @ block.W_V[head] @ block.W_O[head] @ exact.W_U
            hits += int((logits > logits[b]).sum() < k) + int((logits < logits[b]).sum() < k)
    return time.perf_counter() - start, hits


def measure(name: str, threads: int, repeat: int) -> dict:
    """One model in this process."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.heads.pairs import token_pairs
    from saekit.heads.relations import open_relation
    from saekit.heads.static_scores import score_heads
    from saekit.model.exact import ExactModel
    from saekit.model.loading import LanguageModel, load_model

    torch.set_num_threads(threads)
    if name == "gpt2-mini":
        model, relation = load_model(name), open_relation("name_copying")
    else:
        torch.manual_seed(0)
        model = LanguageModel(name, GPT2LMHeadModel(GPT2Config()).eval(), None)
        ids = torch.randperm(model.d_vocab)[:GPT2_PAIRS].tolist()
        relation = open_relation([(token, token) for token in ids])
    pairs = token_pairs(model, relation)
    seconds, processor = [], []
    for _ in range(repeat):
        start, cpu = time.perf_counter(), time.process_time()
        model.__dict__.pop("fingerprint", None)  # it is part of every first call
        score_heads(model, relation)
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    with torch.no_grad():
        source, target = (torch.from_numpy(ids) for ids in (pairs.source, pairs.target))
        naive, _ = naive_seconds(ExactModel(model), source, target, 1)
    return {
        "model": name,
        "heads": model.n_layers * model.n_heads,
        "vocabulary": model.d_vocab,
        "pairs": len(pairs),
        "seconds": [round(value, 2) for value in seconds],
        "processor_seconds": [round(value, 2) for value in processor],
        "naive_seconds": round(naive * model.n_layers, 1),
        "naive_measured_on": f"1 of {model.n_layers} layers",
        "faster": round(naive * model.n_layers / min(seconds), 1),
        "peak_memory_gb": round(peak, 2),
    }


def main() -> None:
    """Measure both models in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args.only, args.threads, args.repeat)))
        return
    results = []
    for name in ("gpt2-mini", "random weights, GPT-2 small's shape"):
        command = [
            sys.executable, __file__, "--only", name,
            "--threads", str(args.threads), "--repeat", str(args.repeat),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
    machine = {
        "threads": args.threads,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "processor": platform.processor() or platform.machine(),
    }
    print(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
