"""The way of a prompt through `saekit.trace`, as JSON: how often it changes the module.

    python benchmarks/trace_path.py [--checkout FOLDER] [--steps]

A reader who follows the call meets each function of saekit where it is first called.  A *stop* is
such a call in another module than the one before it; a *return* is a stop in a module already
visited; `functions` are the names met on the way, `modules` the files.  `public` counts the way by
public names, which a reader follows first; `all` counts private functions too.  Model, dictionaries
and catalogue are opened before.  Inner functions and dunder methods are no names of their own.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[1]
PROMPT = 'The opposite of "large" is "'

Step = tuple[str, str]


def steps(package: Path, run: Any) -> list[Step]:
    """(module, function) of every function of `package` that `run` calls, in order of first calls.

    Args:
        package: a folder of modules.
        run: called without arguments.
    """
    met: dict[Step, None] = {}
    root = f"{package}{os.sep}"

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(root):
            name = code.co_qualname
            if "<" not in name and not name.split(".")[-1].startswith("__"):
                met.setdefault((code.co_filename.removeprefix(root), name))

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return list(met)


def counts(path: list[Step]) -> dict[str, int]:
    """Stops, returns, modules and functions of a path."""
    stops = [path[0][0]] if path else []
    for module, _ in path:
        if module != stops[-1]:
            stops.append(module)
    modules = set(stops)
    return {
        "stops": len(stops), "returns": len(stops) - len(modules),
        "modules": len(modules), "functions": len(path),
    }  # fmt: skip


def seed_prompt() -> list[Step]:
    """The path of the seed prompt through the saekit that is imported."""
    import saekit
    from saekit.bundled import DEFAULT_DICTIONARIES, bundled
    from saekit.concepts.catalogue import Catalogue

    folder = bundled(DEFAULT_DICTIONARIES)
    model, dictionaries = saekit.load_model("gpt2-mini"), saekit.DictionarySet.load(folder)
    catalogue = Catalogue.load(folder / "concepts.json")

    def run() -> None:
        saekit.trace(model, dictionaries, PROMPT, catalogue=catalogue, random_sets=20)

    run()  # what is computed once and kept is no part of the way
    return steps(Path(saekit.__file__).parent, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkout", type=Path, help="the code to measure (default: this)")
    parser.add_argument("--steps", action="store_true", help="list every stop too")
    args = parser.parse_args()
    if args.checkout:  # another state of the code needs a process of its own
        command = [sys.executable, __file__, *(["--steps"] if args.steps else [])]
        folder = str(args.checkout.resolve())
        subprocess.run(command, check=True, cwd=folder, env={**os.environ, "PYTHONPATH": folder})
        return
    path = seed_prompt()
    public = [step for step in path if not any(p.startswith("_") for p in step[1].split("."))]
    report: dict[str, Any] = {"public": counts(public), "all": counts(path)}
    if args.steps:
        report["steps"] = [f"{module}: {name}" for module, name in path]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
