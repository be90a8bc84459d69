"""How fast a large index answers: 13 layers x 24,576 features with names, made up, no model.

    python benchmarks/query.py [--folder DIR]        prints JSON

Times are the median of several calls; those of the command line include starting Python.  The
made-up statistics have the sizes of a real index, not its meaning.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from saekit.features.index.examples import KeptExamples
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.index.statistics import Moments
from saekit.features.index.token_pairs import CountedPairs, PairTable
from saekit.features.index.writer import IndexWriter
from saekit.features.names.lexicons import Words
from saekit.features.names.name_file import NAMES, LayerNames, write_names

PER_FEATURE = 24  # tokens on which a made-up feature is active
POSITIONS = 300_000


def made_up(
    folder: Path, n_layers: int = 13, d_sae: int = 24_576, d_vocab: int = 50_257, seed: int = 0
) -> Path:
    """An index with names of any size."""
    rng = np.random.default_rng(seed)
    vocabulary = [f"{' ' * (n % 2)}word{n}" for n in range(d_vocab - 2)] + [" (", " seven"]
    counts = np.maximum(1, (POSITIONS / 10 / (1 + np.arange(d_vocab)))).astype(np.int64)
    attributes: dict[str, Any] = {
        "model": "made-up", "fingerprint": "0", "prepend_bos": True, "bos": 0,
        "layers": list(range(n_layers)), "d_sae": d_sae, "sizes": [d_sae] * n_layers,
        "n_tokens": int(counts.sum()), "promoted": 10, "dictionaries": ["0"] * n_layers,
    }  # fmt: skip
    path = folder / "index.h5"
    with IndexWriter(attributes, 10, 3, Words(vocabulary), counts, 15) as writer:
        writer.write_contexts(rng.integers(1, d_vocab, (20_000, 128)))
        for slot in range(n_layers):
            moments, pairs = _statistics(rng, d_sae, d_vocab)
            kept = {"examples": _examples(rng, d_sae, 10), "samples": _examples(rng, d_sae, 3)}
            token = rng.integers(0, d_vocab, (d_sae, 15))
            value = rng.random((d_sae, 15), np.float32)
            relatives = {"same": (token[:, :2] % d_sae, value[:, :2])}
            beside = {"before": pairs, "after": pairs}
            writer.write_layer(slot, moments, pairs, kept, token, value, 10, beside, relatives)
        path.write_bytes(writer.finish())
    with FeatureIndex.open(path) as index:
        layers = []
        for size in index.sizes:
            names = LayerNames.empty(size)
            for feature in range(0, size, 2):
                names.set(feature, f"word{feature}", "input", "current word", 0.9, 50.0)
            layers.append(names)
        write_names(folder / NAMES, index, layers, labeller="", text="", n_tokens=0, summary={})
    return path


def _statistics(rng: np.random.Generator, d_sae: int, d_vocab: int) -> tuple[Moments, PairTable]:
    moments, pairs = Moments(d_sae), CountedPairs(d_sae, 4 * PER_FEATURE)
    feature = np.repeat(np.arange(d_sae), 4 * PER_FEATURE)
    token = (d_vocab * rng.random(len(feature)) ** 3).astype(np.int64)
    value = rng.random(len(feature), np.float32) + 0.1
    moments.add(feature, value)
    pairs.add(token, feature, value)
    return moments, pairs.finish()


def _examples(rng: np.random.Generator, d_sae: int, places: int) -> KeptExamples:
    kept = KeptExamples(d_sae, places)
    kept.score[:] = 1
    kept.value[:] = rng.random(kept.value.shape) + 0.1
    kept.row = rng.integers(0, 20_000, kept.row.shape).astype(np.int32)
    kept.place = rng.integers(1, 127, kept.place.shape).astype(np.uint16)
    kept.window[:] = rng.random(kept.window.shape, np.float32)
    return kept


def _median(run: Callable[[], Any], repeats: int) -> float:
    """Milliseconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(times), 1)


def measure(path: Path, repeats: int = 7) -> dict[str, float]:
    """Milliseconds of each kind of question."""

    def opened() -> None:
        FeatureIndex.open(path).close()

    def first() -> None:
        with FeatureIndex.open(path) as index:
            index.by_token(" word501")

    def command(*arguments: str) -> Callable[[], Any]:
        call = [sys.executable, "-m", "saekit", "query", str(path.parent), *arguments]
        return lambda: subprocess.run(call, check=True, capture_output=True)

    result = {
        "open_ms": _median(opened, repeats),
        "open_and_first_token_ms": _median(first, repeats),
    }
    with FeatureIndex.open(path) as index:
        index.by_token(" word501")
        index.feature(3, 10)
        tokens = iter(range(503, 50_000, 1000))
        result["token_ms"] = _median(lambda: index.by_token(f" word{next(tokens)}"), repeats)
        result["frequent_token_ms"] = _median(lambda: index.by_token(" word3"), repeats)
        features = iter(range(0, 20_000, 777))
        result["feature_ms"] = _median(lambda: index.feature(5, next(features)), repeats)
    result["command_token_ms"] = _median(command("--token", " word501"), 3)
    result["command_feature_ms"] = _median(command("--feature", "3/10"), 3)
    result["command_concept_ms"] = _median(command("--concept", "word10"), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to keep the made-up index")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        where = folder or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        path = where / "index.h5"
        if not path.exists():
            made_up(where)
        size = round(path.stat().st_size / 1e6)
        print(json.dumps({"layers": 13, "features": 24_576, "megabytes": size, **measure(path)}))


if __name__ == "__main__":
    main()
