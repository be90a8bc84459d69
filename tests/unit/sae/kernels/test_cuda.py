"""The Triton programs without a GPU: the checks of test_kernels.py in Triton's interpreter.

The interpreter takes the place of Triton's language when `triton` is imported, so it has a process
of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saekit.sae.kernels import Reference, kernels_for

HERE = Path(__file__).parent
# the interpreter takes milliseconds per operation: widths that take no other path are left out
CHOSEN = "triton and not 16] and not -512 and not -1024 and not -4096"


@pytest.mark.slow
def test_the_programs_in_tritons_interpreter():
    """Each mutation was tried by hand and is found by a test of test_kernels.py.

    - `largest`: `ties < wanted`
    - `forward_backward`: `up` without the later prefixes
    - `run_sums`: W_dec's gradient weighted by slopes
    - `later_runs`: a feature's later runs begin one run too early
    - `feature_sums`: later runs left out
    - `adam_rows`: epsilon inside the root; the shadow cut off, not rounded
    """
    pytest.importorskip("triton", reason="triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", str(HERE / "test_kernels.py"), "-k", CHOSEN]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        command, env=environment, cwd=HERE.parents[3], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_without_triton_cuda_uses_pytorch(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in [name for name in sys.modules if name.startswith("saekit.sae.kernels.cuda")]:
        monkeypatch.delitem(sys.modules, name)
    assert type(kernels_for(torch.device("cuda"))) is Reference
    assert "triton" in caplog.text


def test_the_kernels_of_a_cuda_device():
    pytest.importorskip("triton", reason="triton is not installed")
    assert type(kernels_for(torch.device("cuda"))).__name__ == "Cuda"
