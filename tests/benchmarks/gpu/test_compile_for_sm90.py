"""Every Triton program compiles for an H100, at one size each, on a machine without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

pytest.importorskip("triton", reason="Triton has packages for Linux on x86_64 only")


def test_every_program_compiles_without_spills():
    """Mutation tried: a name that does not exist in `largest`; its line then holds the error."""
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu/compile_for_sm90.py", "--small"], cwd=ROOT,
        capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT), "HOME": "/tmp"},
    )  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row for row in rows if "error" in row] == [] and done.returncode == 0, done.stderr
    assert {row["program"].split()[0] for row in rows} == {
        "largest", "adam", "forward_backward", "later_runs", "feature_sums",
    }  # fmt: skip
    for row in rows:
        assert 16 <= row["registers"] <= 255 and row["instructions"] > 50, row
        assert row["spills"] == 0, row
