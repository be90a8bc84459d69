"""Time and memory of one trace after loading, as JSON.

    python benchmarks/trace_speed.py [--repeats 3] [--cases mini8 mini128 small8]

`mini8` and `mini128`: the bundled model and dictionaries, the seed prompt and 128 tokens of
generated text.  `small8`: the seed prompt's length on a random GPT-2 of the small size with random
top-k dictionaries (8,192 features, k 32) at all 13 layers: a size, not a model.  `first_s` is the
first trace of the process, `median_s` that of the repeats; `peak_mb` is the process' peak resident
memory, model and dictionaries included, so run one case per process to compare memories.
"""

import argparse
import json
import os
import resource
import statistics
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import saekit
from saekit.bundled import DEFAULT_DICTIONARIES, SEED_PROMPT, bundled
from saekit.concepts.catalogue import Catalogue
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary
from saekit.text import relational

D_SAE, K = 8192, 32


def mini(tokens: int) -> tuple[Any, Any, str, Any]:
    folder = bundled(DEFAULT_DICTIONARIES)
    model = saekit.load_model("gpt2-mini")
    dictionaries = saekit.DictionarySet.load(folder)
    prompt = SEED_PROMPT
    if tokens > 8:
        text = " ".join(islice(relational.documents(seed=5), 99))
        prompt = model.tokenizer.decode(model.tokens(text)[:tokens])
    return model, dictionaries, prompt, Catalogue.load(folder / "concepts.json")


def small() -> tuple[Any, Any, str, Any]:
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(initializer_range=0.05)).eval()
    model = LanguageModel("random small", hf, saekit.load_model("gpt2-mini").tokenizer)
    d = model.d_model
    found = {
        layer: Dictionary(
            layer, "topk", torch.randn(d, D_SAE) / d**0.5, torch.zeros(D_SAE),
            torch.randn(D_SAE, d) / d**0.5, torch.zeros(d), k=K,
        )
        for layer in range(model.n_layers + 1)
    }  # fmt: skip
    manifest = {"fingerprint": model.fingerprint, "model": model.id}
    return model, saekit.DictionarySet(found, manifest, Path("random")), SEED_PROMPT, None


CASES = {"mini8": lambda: mini(8), "mini128": lambda: mini(128), "small8": small}


def measure(case: str, repeats: int) -> dict[str, Any]:
    began = time.perf_counter()
    model, dictionaries, prompt, catalogue = CASES[case]()
    loading = time.perf_counter() - began
    seconds = []
    for _ in range(1 + repeats):
        began = time.perf_counter()
        circuit = saekit.trace(model, dictionaries, prompt, catalogue=catalogue)
        seconds.append(time.perf_counter() - began)
    return {
        "tokens": len(circuit.tokens),
        "n80": circuit.n80,
        "loading_s": round(loading, 2),
        "first_s": round(seconds[0], 2),
        "median_s": round(statistics.median(seconds[1:]), 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "completeness_error": circuit.completeness_error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args()
    document = {
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        **{case: measure(case, args.repeats) for case in args.cases},
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
