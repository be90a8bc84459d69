"""The path's measure: what a stop is, what a return is, and that the seed prompt has a path."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.trace_path import counts, steps

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "trace_path.py"


def test_counts_by_hand():
    # a, b (stop), a again (stop and return), c (stop)
    path = [("a", "f"), ("a", "g"), ("b", "f"), ("a", "h"), ("c", "f")]
    assert counts(path) == {"stops": 4, "returns": 1, "modules": 3, "functions": 5}
    assert counts([]) == {"stops": 0, "returns": 0, "modules": 0, "functions": 0}


def test_steps_are_first_calls_inside_the_package(tmp_path):
    (tmp_path / "one.py").write_text(
        "def f():\n    return [g() for _ in range(2)]\ndef g(): pass\n"
    )
    (tmp_path / "two.py").write_text(
        "class C:\n    def __init__(self): pass\n    def m(self): pass"
    )
    modules = []
    for name in ("one", "two"):
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        assert spec and spec.loader
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])
    one, two = modules

    def run():
        two.C().m()
        one.f()
        two.C().m()

    # __init__ and the functions of this file are no steps; mutation tried: without "first time"
    # (a list instead of a dict) g comes twice
    assert steps(tmp_path, run) == [("two.py", "C.m"), ("one.py", "f"), ("one.py", "g")]


def test_the_seed_prompt_has_a_path():
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps"], capture_output=True, text=True, check=True
    )
    report = json.loads(done.stdout)
    assert report["steps"][0] == "routes/trace.py: trace"
    assert 0 < report["public"]["returns"] < report["public"]["stops"]
    assert report["all"]["functions"] == len(report["steps"])
