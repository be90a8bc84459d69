"""The stage timer in its small form, where no GPU is needed."""

import json
import subprocess
import sys

import torch

from benchmarks.gpu import stages


def test_every_stage_is_timed_and_none_fails():
    done = subprocess.run(
        [sys.executable, stages.__file__, "--small"], capture_output=True, text=True, check=True
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["stage"] for row in rows if "error" in row] == []
    assert [row["stage"] for row in rows] == [
        "encoder", "largest", "torch.topk", "forward_backward", "weight_gradients",
        "sort of pairs", "owners of pairs", "combine_rows", "centre_rows", "whole step",
        "whole step, a third and more dead",
    ]  # fmt: skip
    assert all(row["ms"] > 0 for row in rows)


def test_a_stage_that_fails_is_named_and_the_next_one_runs(capsys):
    timed = stages.Stages(torch.device("cpu"), tokens=10)
    timed("wrong", lambda: 1 / 0)
    timed("right", lambda: torch.ones(1000).sum(), bytes_=4000)
    wrong, right = map(json.loads, capsys.readouterr().out.splitlines())
    assert wrong == {"stage": "wrong", "error": "ZeroDivisionError: division by zero"}
    assert right["ms"] > 0
