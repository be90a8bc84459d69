"""The whole line on the bundled model: train, evaluate, index, name, trace, report.

Everything is computed here and now from built-in text; nothing is read but the model.  The
dictionaries are small and briefly trained, so their figures are below those of the shipped set.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from saekit.bundled import SEED_PROMPT
from saekit.concepts.finding import find_concepts
from saekit.features.index.build import build_index
from saekit.features.index.feature_index import FeatureIndex
from saekit.features.index.index_file import INDEX_FILE
from saekit.features.names.names import make_names
from saekit.files import ensure_writable, write_json
from saekit.model.loading import load_model
from saekit.report.export import write_report
from saekit.report.terminal.circuit_text import render
from saekit.report.terminal.concept_tables import catalogue_table
from saekit.report.terminal.dictionary_table import evaluation_table
from saekit.routes.trace import trace
from saekit.sae.evaluation import evaluate
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.trainer import train
from saekit.text.parts import INDEX, only_parts
from saekit.text.sources import open_text

DEMO_TOKENS = 400_000  # about two minutes on two cores
DEMO_FEATURES = 2048
NEXT = """Try next:
  saekit trace {out} 'The opposite of "hot" is "'
  saekit query {out} --token ' large'
  saekit view {out}"""


def run_demo(
    out: Path, tokens: int | None = None, say: Callable[[Any], None] = lambda _: None
) -> dict[str, Any]:
    """Run every stage on `gpt2-mini` and write the results into `out`.

    Args:
        out: folder for dictionaries, index, concepts, circuit and report.
        tokens: training tokens (default 400,000).
        say: where the headings and tables go (text or rich tables).

    Returns:
        Seconds per stage.

    Raises:
        InputError: `out` cannot be written.
    """
    ensure_writable(out)
    seconds: dict[str, float] = {}
    start = time.perf_counter()

    def done(stage: str) -> None:
        nonlocal start
        seconds[stage] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()

    model = load_model("gpt2-mini")
    done("model")
    say(f"1. Train dictionaries on the {model.n_layers + 1} layers of gpt2-mini")
    config = TrainConfig(d_sae=DEMO_FEATURES, k=32, tokens=tokens or DEMO_TOKENS)
    dictionaries = train(model, open_text, config, out=out)
    done("train")
    say("\n2. Evaluate them on held-out text")
    layers = evaluate(model, dictionaries, open_text(held_out=True), tokens=20_000)
    say(evaluation_table(layers))
    done("evaluate")
    say("\n3. Index what every feature fires on, and name it")
    text = only_parts(open_text(held_out=True), INDEX)
    build_index(model, dictionaries, text, out / INDEX_FILE, tokens=100_000)
    make_names(
        model, dictionaries, out / INDEX_FILE, open_text(held_out=True), tokens=20_000,
        text_name="generated, prose",
    )  # fmt: skip
    done("index")
    say("\n4. Find the concepts and their layer spans")
    with FeatureIndex.open(out) as index:
        named = index.names
    catalogue = find_concepts(
        model, dictionaries, open_text(held_out=True), tokens=60_000, named=named
    )
    catalogue.save(out / "concepts.json")
    say(catalogue_table(catalogue))
    done("concepts")
    say(f"\n5. Trace {SEED_PROMPT}")
    circuit = trace(model, dictionaries, SEED_PROMPT, catalogue=catalogue)
    circuit.save(out / "circuits" / "opposite-of-large.json")
    say(render(circuit))
    done("trace")
    for path in write_report(circuit, out / "report"):
        say(f"wrote {path}")
    done("report")
    write_json(out / "demo.json", {"seconds": seconds, "total": round(sum(seconds.values()), 1)})
    say(f"\nAll done in {sum(seconds.values()):.0f} s.\n" + NEXT.format(out=out))
    return seconds
