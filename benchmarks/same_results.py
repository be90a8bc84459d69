"""Whether two states of the code compute the same: JSON of the README's tour, before and after.

    python benchmarks/same_results.py collect OUT [--checkout FOLDER] [--only NAME ...]
    python benchmarks/same_results.py compare BEFORE AFTER [--known FILE]

`collect` runs the commands of `TOUR` with the code of a checkout (default: this one) and writes
one JSON file per command into OUT.  `compare` prints what differs, as JSON, and exits with 1 if
anything does.  Structure, keys, strings and orders are to be equal; two numbers are the same when
they differ by at most 1e-5 of the larger, or by 1e-7 of the largest number of their kind (the
same place in the document, positions in lists aside) or of the largest in the document when they
are sums in which terms cancel (the same place holds both signs).  `--known` is a file of lines
`NAME PATH` (`*` for any position) whose differences are listed apart, as stated.
"""

import argparse
import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
RELATIVE, OF_LARGEST = 1e-5, 1e-7
PROMPT = 'The opposite of "large" is "'
WORDS = """template = 'The opposite of "{word}" is "'
word = ["large", "hot", "early", "old", "good", "long", "high", "dark", "fast", "rich"]
"""
# {graph} and {words} are files; the other commands print the document
TOUR: dict[str, list[str]] = {
    "trace": ["trace", PROMPT],
    "trace_hot": ["trace", 'The opposite of "hot" is "'],
    "trace_key": ["trace", PROMPT, "--key", "5", "--target", "small", "--heads", "8"],
    "trace_feature": ["trace", PROMPT, "--target", "12/7740", "--key", "5"],
    "counterfactual": ["trace", PROMPT, "--counterfactual", 'The opposite of "happy" is "'],
    "interventions": ["trace", PROMPT, "--set", "large@5=0", "--swap", "large@5->hot"],
    "variants": ["trace", PROMPT, "--variants", "{words}", "--random-sets", "50"],
    "graph": ["trace", PROMPT, "--graph", "{graph}"],
    "concepts": ["concepts"],
    "concepts_find": ["concepts", "--find", "--tokens", "60000", "--out", "{scratch}"],
    "concepts_all": ["concepts", "--all"],
    "concepts_prompt": ["concepts", "--prompt", 'a "large" house'],
    "query_token": ["query", "--token", " large"],
    "query_feature": ["query", "--feature", "0/0"],
    "query_concept": ["query", "--concept", "large"],
    "query_text": ["query", "--text", "a large house"],
    "evaluate": ["evaluate", "--tokens", "20000"],
    "heads": ["heads", "gpt2-mini", "--dynamic", "--causal"],
    "heads_pairs": ["heads", "gpt2-mini", "--relation", "opposites", "--pairs"],
    "heads_salient": ["heads", "gpt2-mini", "--salient", "L9-H8"],
}  # fmt: skip

Place = tuple[str | int, ...]
Leaf = tuple[Place, Any]


def collect(out: Path, checkout: Path, names: list[str]) -> None:
    """Run the tour with the code of `checkout`; one file a command."""
    out.mkdir(parents=True, exist_ok=True)
    files = {"words": out / "words.toml", "graph": out / "graph.file", "scratch": out / "scratch"}
    files["words"].write_text(WORDS)
    for name in names:
        command = [part.format(**files) if "{" in part else part for part in TOUR[name]]
        done = subprocess.run(
            [sys.executable, "-m", "saekit", *command, "--json"],
            capture_output=True, text=True, cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"saekit {' '.join(command)} ended with {done.returncode}: {done.stderr}")
        text = files["graph"].read_text() if name == "graph" else done.stdout
        (out / f"{name}.json").write_text(text)
        print(f"collected {name}", file=sys.stderr)


def leaves(document: Any, place: Place = ()) -> Iterator[Leaf]:
    """Every value of a document with its place; a dictionary's keys and a list's length too."""
    if isinstance(document, dict):
        yield (*place, "(keys)"), " ".join(document)
        for key, value in document.items():
            yield from leaves(value, (*place, key))
    elif isinstance(document, list):
        yield (*place, "(length)"), str(len(document))
        for number, value in enumerate(document):
            yield from leaves(value, (*place, number))
    else:
        yield place, document


def kind(place: Place) -> str:
    """A place without its positions in lists, such as `arrivals/*/value`."""
    return "/".join("*" if isinstance(part, int) else part for part in place)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def differences(before: Any, after: Any) -> list[dict[str, Any]]:
    """What differs between two documents, as {place, kind, before, after}."""
    old, new = dict(leaves(before)), dict(leaves(after))
    largest: dict[str, float] = defaultdict(float)
    signs: dict[str, set[bool]] = defaultdict(set)
    for place, value in old.items():
        if number(value):
            largest[kind(place)] = max(largest[kind(place)], abs(value))
            if value:
                signs[kind(place)].add(value > 0)
    top = max(largest.values(), default=0.0)
    found = []
    for place in [*old, *(place for place in new if place not in old)]:
        a, b = old.get(place, "(missing)"), new.get(place, "(missing)")
        if number(a) and number(b):
            of = top if len(signs[kind(place)]) == 2 else largest[kind(place)]
            same = abs(a - b) <= max(RELATIVE * max(abs(a), abs(b)), OF_LARGEST * of)
        else:
            same = type(a) is type(b) and a == b
        if not same:
            found.append(
                {"place": "/".join(map(str, place)), "kind": kind(place), "before": a, "after": b}
            )
    return found


def compare(before: Path, after: Path, known: set[tuple[str, str]]) -> dict[str, Any]:
    """Counts and differences of every document that one of the folders holds."""
    report: dict[str, Any] = {}
    for name in TOUR:
        files = [folder / f"{name}.json" for folder in (before, after)]
        if not any(file.exists() for file in files):
            continue
        if not all(file.exists() for file in files):
            report[name] = {"values": 0, "differences": ["one of the folders has no such file"]}
            continue
        old, new = (json.loads(file.read_text()) for file in files)
        found = differences(old, new)
        report[name] = {
            "values": sum(1 for _ in leaves(old)),
            "differences": [one for one in found if (name, one["kind"]) not in known],
            "stated": [one for one in found if (name, one["kind"]) in known],
        }
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("collect")
    one.add_argument("out", type=Path)
    one.add_argument("--checkout", type=Path, default=HERE)
    one.add_argument("--only", nargs="+", choices=list(TOUR), default=list(TOUR))
    two = commands.add_parser("compare")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument("--known", type=Path)
    args = parser.parse_args()
    if args.command == "collect":
        collect(args.out.resolve(), args.checkout.resolve(), args.only)
        return 0
    lines = args.known.read_text().splitlines() if args.known else []
    known = {(name, place) for name, place in (line.split(maxsplit=1) for line in lines if line)}
    report = compare(args.before, args.after, known)
    print(json.dumps(report, indent=1))
    return 1 if any(part["differences"] for part in report.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
