"""The speed benchmark: every side reads the same model, and short runs give whole documents."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks import train_throughput, training_sides

SCRIPT = train_throughput.__file__


def document(*arguments: str) -> dict:
    command = [sys.executable, SCRIPT, "--size", "smoke", "--threads", "1", "--repeat", "1"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_peer_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(train_throughput, "find_spec", lambda module: None)
    with pytest.raises(SystemExit, match="sparsify is not installed: pip install eai-sparsify"):
        train_throughput.sides_of(["none,sparsify"])
    with pytest.raises(SystemExit, match='There is no peer "other"'):
        train_throughput.sides_of(["other"])
    assert train_throughput.sides_of(["none"]) == ["saekit"]


def test_flops_of_a_token_by_hand():
    # one layer, two points: 2 (2*4*8 + 8*4*2) + 24*16 + 4*3*4
    size = {"n_layers": 1, "d_model": 4, "d_sae": 8, "k": 2, "context": 3}
    assert train_throughput.flops_per_token(size) == 688


def test_the_hooked_transformer_has_the_same_stream(tiny_model):
    """HookedTransformer's blocks are read by SAELens; a transposed weight would change them."""
    from saekit.activations import residuals

    pytest.importorskip("transformer_lens")
    torch.manual_seed(0)
    ids = torch.randint(1, tiny_model.d_vocab, (2, 16))
    model = training_sides.hooked(tiny_model.hf, tiny_model.n_ctx)
    task = training_sides.Task(tiny_model.hf, ids, None, 8, 2, 64, 32, 128, 1e-3, False)
    with torch.no_grad():
        _, cache = model.run_with_cache(ids)
    for point, stream in zip(task.points, residuals(tiny_model, ids), strict=True):
        torch.testing.assert_close(cache[point], stream, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_document_beside_saelens():
    pytest.importorskip("sae_lens")
    found = document("--peer", "saelens")
    for side in ("saekit", "saelens"):
        figures = found[side]
        assert figures["tokens_per_s"] > 0 and figures["peak_memory_gb"] > 0
        assert figures["layer_tokens_per_s"] == pytest.approx(3 * figures["tokens_per_s"])
        assert set(figures["share_of_limit"]) == {"float32", "bfloat16"}
    expected = found["saekit"]["layer_tokens_per_s"] / found["saelens"]["layer_tokens_per_s"]
    assert found["ratios"]["saelens"]["s"] == pytest.approx(expected)


@pytest.mark.slow
def test_document_of_quality_alone():
    found = document(
        "--peer", "none", "--quality", "--quality-tokens", "4096", "--quality-lr", "0.003"
    )
    assert found["ratios"] == {}
    figures = found["quality"]["saekit"]
    assert len(figures["fvu_by_point"]) == 13
    assert 0 < figures["fvu"] < 1
