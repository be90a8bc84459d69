"""Commands that follow a concept on a prompt: trace, report, view."""

import argparse
import os
import sys
from typing import Any

from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.cli.common import Command, add_dictionaries, dictionary_folder, open_set, show
from saekit.errors import InputError


def _open(args: argparse.Namespace) -> tuple[Any, Any, Any]:
    """The model, its dictionaries and their concepts, if they were found already.

    A model without a dictionary set (`--model M PROMPT`) is traced by its weights alone.
    """
    from saekit.concepts.catalogue import Catalogue

    if args.model and args.dictionaries == DEFAULT_DICTIONARIES:
        from saekit.model.devices import check_device
        from saekit.model.loading import load_model
        from saekit.sae.storage.dictionary_set import DictionarySet

        check_device(args.device)
        model = load_model(args.model, device=args.device)
        return model, DictionarySet.none(model), None
    model, dictionaries = open_set(args)
    path = dictionaries.path / "concepts.json"
    return model, dictionaries, Catalogue.load(path) if path.exists() else None


def _traced(args: argparse.Namespace, opened: tuple[Any, Any, Any]) -> Any:
    from saekit.routes.trace import trace

    model, dictionaries, catalogue = opened
    return trace(
        model,
        dictionaries,
        args.prompt,
        target=args.target,
        query=args.query,
        key=args.key,
        heads=args.heads,
        catalogue=catalogue,
        random_sets=args.random_sets,
        means=args.means,
        counterfactual=args.counterfactual,
    )


def _add_trace(parser: argparse.ArgumentParser) -> None:
    add_dictionaries(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the text to explain")
    parser.add_argument("--target", help="a concept, a feature (8/1234) or a token")
    parser.add_argument("--query", type=int, help="position of the target (default: the last)")
    parser.add_argument("--key", type=int, help="position it came from (default: the strongest)")
    parser.add_argument("--heads", type=int, default=5, help="how many to list (default 5)")
    parser.add_argument(
        "--random-sets", type=int, default=200, help="random head sets to compare with"
    )
    parser.add_argument(
        "--means", metavar="FILE", help="also ablate by the head means that saekit means wrote"
    )
    parser.add_argument(
        "--counterfactual", metavar="PROMPT",
        help="also ablate by what the heads move in a prompt of the same length",
    )  # fmt: skip


def _trace(args: argparse.Namespace) -> None:
    from saekit.files import ensure_file_writable, ensure_writable
    from saekit.report.terminal.circuit_text import render

    folder = ensure_writable(args.out) if args.out else None
    if args.graph is not None:
        ensure_file_writable(args.graph)
    prompts = _variant_prompts(args)
    opened = _open(args)
    circuit = _traced(args, opened)
    document, blocks = circuit.to_dict(), [render(circuit)]
    if args.changes:
        from saekit.report.terminal.outcome_text import render_outcomes
        from saekit.routes.intervention.intervene import intervene

        model, dictionaries, catalogue = opened
        outcomes = intervene(
            model, dictionaries, args.prompt, args.changes, args.target, args.query, catalogue
        )
        document["interventions"] = [outcome.to_dict() for outcome in outcomes]
        blocks.append(render_outcomes(outcomes))
    if prompts:
        from saekit.report.terminal.variant_text import render_variants
        from saekit.routes.variants.summary import trace_variants

        variants = trace_variants(
            *opened[:2], prompts, circuit.key, circuit.query, len(circuit.tokens),
            args.target, opened[2], args.random_sets,
        )  # fmt: skip
        document["variants"] = variants.to_dict()
        blocks.append(render_variants(variants))
    if folder:
        _write(folder, circuit, document)
    if args.graph:
        from saekit.files import write_json
        from saekit.routes.graph.builder import attribution_graph

        write_json(
            args.graph,
            attribution_graph(
                *opened[:2], args.prompt, args.target, args.query, catalogue=opened[2]
            ),
        )
    show(args, document, "\n\n".join(blocks))


def _variant_prompts(args: argparse.Namespace) -> list[str]:
    """Read before anything is computed, as are the changes."""
    if args.changes:
        from saekit.routes.intervention.changes import parse_change

        for change in args.changes:
            parse_change(change)
    if args.variants is None:
        return []
    from saekit.routes.variants.templates import read_variants

    return read_variants(args.variants)


def _write(folder: Any, circuit: Any, document: dict[str, Any]) -> None:
    from saekit.files import write_json

    circuit.save(folder / "circuit.json")
    for name in ("interventions", "variants"):
        if name in document:
            write_json(folder / f"{name}.json", {"schema_version": 1, name: document[name]})


def _report(args: argparse.Namespace) -> None:
    from saekit.files import ensure_writable
    from saekit.report.export import write_report

    folder = ensure_writable(args.out)
    written = write_report(_traced(args, _open(args)), folder)
    names = [str(path) for path in written]
    show(args, {"files": names}, "\n".join(names))


def _view(args: argparse.Namespace) -> None:
    folder = dictionary_folder(args)
    if args.json:
        raise InputError("view opens a page: it has no --json.")
    if not (folder / "manifest.json").exists():
        raise InputError(f"{folder} holds no dictionary set: train one with saekit train.")
    command = [sys.executable, "-m", "streamlit", "run", str(bundled("app/viewer.py"))]
    options = {
        "server.port": args.port,
        "server.address": "127.0.0.1",
        "browser.gatherUsageStats": "false",
        "server.headless": "true",
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    print(f"The viewer is at http://127.0.0.1:{args.port} (stop it with Ctrl-C).")
    sys.stdout.flush()
    config = bundled("app/.streamlit").parent
    os.environ["SAEKIT_DICTIONARIES"] = str(folder.resolve())
    os.chdir(config)  # Streamlit reads its theme from the folder it is started in
    os.execv(sys.executable, command)


def add(command: Command) -> None:
    """The subcommands of this module."""
    sub = command("trace", _trace, "the heads that route a concept on a prompt")
    _add_trace(sub)
    sub.add_argument(
        "--graph", metavar="FILE.json",
        help="write an attribution graph that circuit-tracer's and Neuronpedia's pages open",
    )  # fmt: skip
    sub.add_argument("--out", help="folder for circuit.json (and what else is asked for)")
    sub.add_argument(
        "--set", dest="changes", action="append", metavar="CONCEPT@P=VALUE",
        help="hold a concept (or a feature, 8/1234) at a value at position P and read the "
        "prediction; may be repeated",
    )  # fmt: skip
    sub.add_argument(
        "--swap", dest="changes", action="append", metavar="CONCEPT@P->WORD",
        help="put another word's features in the place of a concept's at position P",
    )  # fmt: skip
    sub.add_argument(
        "--variants", metavar="FILE",
        help="other prompts, one a line, or a template with word lists (.toml): medians and "
        "intervals of every number at the same key and query",
    )  # fmt: skip

    sub = command("report", _report, "trace, then write SVG, PNG, JSON and HTML")
    _add_trace(sub)
    sub.add_argument("--out", required=True, help="folder to write")

    sub = command("view", _view, "the viewer in the browser")
    add_dictionaries(sub, model=False)
    sub.add_argument("--port", type=int, default=8501, help="of the page (default 8501)")
