"""Several processes (gloo, on this machine) against one."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice

import pytest
import torch

from saekit.errors import InputError
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.distributed import World, local_device
from saekit.sae.training.trainer import train
from saekit.text import relational

STEPS, BATCH = 50, 100


def command(model, text, out, processes, steps=STEPS):
    """A `saekit train` in one process, or under torchrun."""
    start = [sys.executable, "-m", "saekit"]
    if processes > 1:
        start = [
            sys.executable, "-m", "torch.distributed.run", "--standalone",
            f"--nproc-per-node={processes}", "-m", "saekit",
        ]  # fmt: skip
    settings = (
        f"--tokens {steps * BATCH} --features 64 --k 8 --batch-tokens {BATCH} --context 32 "
        "--buffer-tokens 1000 --checkpoint-tokens 1000 --float32"
    )
    return [*start, "train", str(model), "--text", str(text), "--out", str(out), *settings.split()]


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n---\n".join(islice(relational.documents(seed=3), 300)))
    return path


@pytest.fixture(scope="module")
def alone(tiny_model_folder, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "set"
    subprocess.run(command(tiny_model_folder, text, out, 1), check=True, capture_output=True)
    return DictionarySet.load(out)


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_result_is_that_of_one_process(processes, alone, tiny_model_folder, text, tmp_path):
    """Mutations tried in distributed.py: every process runs the first one's rows; what came from
    the processes joined in another order."""
    out = tmp_path / "set"
    run = command(tiny_model_folder, text, out, processes)
    subprocess.run(run, check=True, capture_output=True, env=ENVIRONMENT)
    together = DictionarySet.load(out)
    assert together.layers == alone.layers == [0, 1, 2, 3]
    for one, other in zip(alone, together, strict=True):
        for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
            expected, found = getattr(one, name), getattr(other, name)
            assert (found - expected).norm() / expected.norm() < 1e-3, (one.layer, name)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 10, 20, 30, 40, 50]
    assert lines[-1]["layers"] == [0, 1, 2, 3]
    assert not (out / "training").exists()


@pytest.mark.slow
def test_a_dead_process_ends_the_run_and_leaves_a_checkpoint(tiny_model_folder, text, tmp_path):
    out = tmp_path / "set"
    checkpoint = out / "training" / "checkpoint.json"
    run = command(tiny_model_folder, text, out, 2, steps=2000)
    process = subprocess.Popen(
        run, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while process.poll() is None and not checkpoint.exists():
            time.sleep(0.02)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[-1]), signal.SIGKILL)
        process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    document = json.loads(checkpoint.read_text())
    from saekit.sae.storage.tensors import load_tensors

    layers = set()
    for name in set(document["files"].values()):
        tensors, _ = load_tensors(out / "training" / name)
        assert all(torch.isfinite(value.float()).all() for value in tensors.values())
        layers |= {int(key.split("/")[0]) for key in tensors}
    assert layers == {0, 1, 2, 3}
    # one process alone can take the run over
    resumed = [*command(tiny_model_folder, text, out, 1, steps=2000), "--resume"]
    subprocess.run(resumed, check=True, capture_output=True)
    assert DictionarySet.load(out).manifest["tokens"] == 2000 * BATCH


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_with_a_checkpoint(tiny_model_folder, text, tmp_path):
    """Mutation tried: a process that was told to stop writes a log line of its own (as a run of
    one process does), which the others take for something else."""
    out = tmp_path / "set"
    metrics = out / "metrics.jsonl"
    run = command(tiny_model_folder, text, out, 2, steps=3000)
    run[run.index("--checkpoint-tokens") + 1] = "1000000"
    process = subprocess.Popen(
        run, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        workers = subprocess.run(
            ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(workers.stdout.split()[0]), signal.SIGTERM)
        errors = process.communicate(timeout=300)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert "Stopped by SIGTERM after step" in errors
    step = json.loads((out / "training" / "checkpoint.json").read_text())["step"]
    assert step % 10 == 0 and f"after step {step} of" in errors


def test_more_processes_than_layers_are_refused(tiny_model, tmp_path):
    config = TrainConfig(tokens=2000, batch_tokens=100, context=32, layers=(1,))
    with pytest.raises(InputError, match="2 processes cannot share 1 layers"):
        train(tiny_model, ["a"], config, tmp_path, world=World(0, 2))


def test_layers_are_dealt_out_in_turn():
    worlds = [World(rank, 3) for rank in range(3)]
    layers = [0, 2, 3, 7, 12]
    assert [world.own(layers) for world in worlds] == [[0, 7], [2, 12], [3]]
    assert worlds[1].owners(layers) == {0: 0, 2: 1, 3: 2, 7: 0, 12: 1}
    assert [world.is_first for world in worlds] == [True, False, False]


def test_a_world_of_one_needs_no_exchange():
    world = World()
    assert world.gather({"a": 1}) == [{"a": 1}]
    assert world.any(True) and not world.any(False)
    world.check(None)
    with pytest.raises(InputError, match="of this"):
        world.check(InputError("of this"))


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert local_device("cuda") == "cuda:3"
    assert local_device("cuda:1") == "cuda:1"
    assert local_device("cpu") == "cpu"
