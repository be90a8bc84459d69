"""Every implementation of the sparse arithmetic against plain indexing, and against each other."""

import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from saekit.native import compilation
from saekit.native import library as compiled
from saekit.sae.kernels import Pairs, Reference, SparsePass, kernels_for, reference
from saekit.sae.kernels import cpu as cpu_kernels


def forget() -> None:
    """So that the compiler is looked for again."""
    compilation.compiler.cache_clear()
    compiled.library.cache_clear()
    compiled._warn.cache_clear()


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
# Triton's programs run on the CPU where test_cuda.py has set its interpreter
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
KERNELS = [
    pytest.param("reference"),
    pytest.param("cpu", marks=needs_compiler),
    *([pytest.param("triton")] if INTERPRETED else []),
    pytest.param("cuda", marks=[pytest.mark.gpu, needs_gpu]),
]


@pytest.fixture(params=KERNELS)
def kernels(request):
    if request.param == "cpu":
        functions, selection = map(compiled.library, cpu_kernels.SOURCES)
        assert functions is not None and selection is not None
        return cpu_kernels.Cpu(functions, selection)
    if request.param == "triton":
        from saekit.sae.kernels.cuda import Cuda

        return Cuda(run=16)
    if request.param == "cuda":
        return OnDevice(kernels_for(torch.device("cuda")))
    return Reference()


class OnDevice:
    """Kernels of a GPU for tests on the CPU: arguments go there, what is changed comes back."""

    def __init__(self, kernels):
        self._kernels = kernels

    def __getattr__(self, name):
        def call(*args, **kwargs):
            moved, pairs = [], []  # what is on the GPU; (CPU, GPU) tensors

            def there(value):
                if isinstance(value, torch.Tensor):
                    pairs.append((value, value.cuda()))
                    return pairs[-1][1]
                return converted(value, there)

            moved = [there(value) for value in args]
            named = {key: there(value) for key, value in kwargs.items()}
            result = getattr(self._kernels, name)(*moved, **named)
            for ours, theirs in pairs:
                ours.copy_(theirs)
            return converted(result, lambda value: value.cpu())

        return call


def converted(value, convert):
    """The same value with all of its tensors converted."""
    if isinstance(value, torch.Tensor):
        return convert(value)
    if isinstance(value, dict):
        return {key: converted(item, convert) for key, item in value.items()}
    if isinstance(value, (Pairs, SparsePass)):
        return type(value)(*(converted(item, convert) for item in vars(value).values()))
    return value


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_centred_rows(kernels, dtype):
    """Mutation tried: computed in the type of the rows."""
    x, scale, centre = normal(30, 21).to(dtype), torch.tensor(1.7), normal(21, seed=1)
    out, narrow = torch.empty(30, 21), torch.empty(30, 21, dtype=torch.bfloat16)
    kernels.centre_rows(x, scale, centre, out, narrow)
    expected = x.double() * scale.double() - centre.double()
    assert torch.allclose(out.double(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(narrow, out.bfloat16())


@pytest.mark.parametrize("n", [16, 40, 300, 512, 1000, 1024, 4096, 8192])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_selection_equals_topk(kernels, n, dtype):
    """Mutation tried in selection.cpp: the bound from k + 1 instead of k groups."""
    k = min(32, n)
    pre = normal(30, n, seed=n).to(dtype)
    pre[0] = -pre[0].abs()  # nothing positive: any k distinct places will do
    pre[1] = 1.0  # all equal
    pairs = kernels.largest(pre, k)
    chosen = pairs.features.view(30, k).long()
    assert pairs.starts.tolist() == list(range(0, 30 * k + 1, k))
    assert (chosen.diff(dim=1) > 0).all()
    expected = pre.topk(k, dim=1).values.relu()  # which negative ones are taken is not defined
    found = pre.gather(1, chosen).relu().sort(dim=1, descending=True).values
    assert torch.equal(found, expected)


@pytest.mark.parametrize("share", [0.001, 0.03, 0.4, 1.0])
def test_selection_over_the_batch(kernels, share):
    pre = normal(20, 130).bfloat16()
    count = max(1, int(share * pre.numel()))
    pairs = kernels.largest_of_batch(pre, count)
    bound = pre.flatten().sort(descending=True).values[count - 1]
    mask = (pre >= bound) & (pre > 0)
    assert pairs.features.tolist() == mask.nonzero()[:, 1].tolist()
    assert pairs.starts.diff().tolist() == mask.sum(1).tolist()


def some_pairs(tokens, d_sae, seed):
    """Different numbers of features per token, none for some."""
    mask = normal(tokens, d_sae, seed=seed) > 1.2
    mask[tokens // 2] = False
    starts = F.pad(mask.sum(1).cumsum(0), (1, 0))
    return mask, Pairs(mask.nonzero()[:, 1].int(), starts)


@pytest.mark.parametrize("ends", [[50], [10, 25, 50]])
@pytest.mark.parametrize("rectify", [True, False])
def test_values_errors_and_gradients_against_autograd(kernels, ends, rectify):
    """Mutations tried in sparse_step.cpp: upstream of one prefix only; slopes of cut pairs kept;
    W_dec's gradient weighted by slopes."""
    tokens, d_in, d_sae = 23, 12, 50
    mask, pairs = some_pairs(tokens, d_sae, seed=1)
    x, target = normal(tokens, d_in, seed=2), normal(tokens, d_in, seed=3)
    b_enc = normal(d_sae, seed=4)
    W_enc, W_dec = normal(d_sae, d_in, seed=5), normal(d_sae, d_in, seed=6)
    scales = [-0.3 * (p + 1) for p in range(len(ends))]
    found = kernels.forward_backward(x, target, W_enc, b_enc, W_dec, pairs, ends, scales, rectify)

    leaves = [t.clone().requires_grad_() for t in (W_enc, b_enc, W_dec)]
    pre = x @ leaves[0].T + leaves[1]
    values = (pre.relu() if rectify else pre) * mask
    loss = torch.zeros(())
    for p, (end, scale) in enumerate(zip(ends, scales, strict=True)):
        error = target - values[:, :end] @ leaves[2][:end]
        loss = loss - scale / 2 * error.square().sum()
        assert torch.allclose(found.errors[p], error.detach(), atol=1e-4)
        assert torch.allclose(found.squared[p].float(), error.detach().square().sum(1), rtol=1e-4)
    loss.backward()
    assert torch.allclose(found.values, values.detach()[mask], atol=1e-5)

    old = {name: normal(*leaf.shape, seed=9) for name, leaf in zip(NAMES, leaves, strict=True)}
    for add in (False, True):
        gradients = {name: value.clone() for name, value in old.items()}
        fired = kernels.weight_gradients(x, found, pairs, ends, gradients, add)
        for name, leaf in zip(NAMES, leaves, strict=True):
            assert leaf.grad is not None
            expected = leaf.grad + (old[name] if add else 0)
            difference = (gradients[name] - expected).norm() / expected.norm()
            assert difference < 1e-5, name
        assert fired.tolist() == (values.detach() > 0).sum(0).tolist()


NAMES = ("W_enc", "b_enc", "W_dec")


def test_gradients_of_features_with_very_many_pairs(kernels):
    """Which Triton sums in runs of 16 here: some are full, some hold a single pair."""
    tokens, d_in, counts = 40, 5, [40, 0, 16, 17, 32, 33, 1, 0]
    x, scales = normal(tokens, d_in), [-0.1, -0.2]
    W_enc, W_dec = normal(len(counts), d_in, seed=1), normal(len(counts), d_in, seed=2)
    mask = torch.arange(tokens)[:, None] < torch.tensor(counts)
    pairs = Pairs(mask.nonzero()[:, 1].int(), F.pad(mask.sum(1).cumsum(0), (1, 0)))
    ends = [4, len(counts)]
    found = kernels.forward_backward(
        x, x, W_enc, torch.zeros(len(counts)), W_dec, pairs, ends, scales
    )
    values, slopes = (torch.zeros(mask.shape) for _ in range(2))
    values[mask], slopes[mask] = found.values, found.slopes
    gradients = {"W_enc": W_enc.clone(), "b_enc": W_enc[:, 0].clone(), "W_dec": W_dec.clone()}
    fired = kernels.weight_gradients(x, found, pairs, ends, gradients)
    expected = {
        "W_enc": slopes.T @ x,
        "b_enc": slopes.sum(0),
        "W_dec": torch.cat(
            [values[:, :4].T @ found.upstream[0], values[:, 4:].T @ found.upstream[1]]
        ),
    }
    for name, value in expected.items():
        assert torch.allclose(gradients[name], value, atol=2e-4), name
    assert fired.tolist() == (values > 0).sum(0).tolist()


@needs_compiler
@pytest.mark.parametrize("ends", [[70], [20, 45, 70]])
def test_bfloat16_factors_are_summed_in_float32(ends):
    """The numbers of bfloat16 weights in float32 give the same, but for upstream's rounding.

    Mutations tried in sparse_step.cpp: upstream of the last prefix alone; slopes from the rounded
    upstream of another prefix; `to_float` without its shift.
    """
    tokens, d_in, d_sae = 19, 75, 70  # no multiples of a vector
    _, pairs = some_pairs(tokens, d_sae, seed=1)
    x, b_enc = normal(tokens, d_in, seed=2), normal(d_sae, seed=4)
    W_enc, W_dec = (normal(d_sae, d_in, seed=seed).bfloat16() for seed in (5, 6))
    scales = [-0.3 * (p + 1) for p in range(len(ends))]
    found = {}
    for name, kernels in (("c++", kernels_for(torch.device("cpu"))), ("torch", Reference())):
        narrow = kernels.forward_backward(x, x, W_enc, b_enc, W_dec, pairs, ends, scales)
        wide = kernels.forward_backward(
            x, x, W_enc.float(), b_enc, W_dec.float(), pairs, ends, scales
        )
        for field in ("values", "slopes", "errors"):
            torch.testing.assert_close(getattr(narrow, field), getattr(wide, field))
        assert narrow.upstream.dtype == torch.bfloat16
        assert torch.equal(narrow.upstream, wide.upstream.bfloat16())
        gradients = {"W_enc": torch.empty(d_sae, d_in), "b_enc": torch.empty(d_sae)}
        gradients["W_dec"] = torch.empty(d_sae, d_in)
        fired = kernels.weight_gradients(x.bfloat16(), narrow, pairs, ends, gradients)
        weights = normal(d_sae, seed=7)
        for matrix in (W_enc, W_enc.float()):
            combined = kernels.combine_rows(matrix, weights)
            torch.testing.assert_close(combined, weights @ W_enc.float(), rtol=1e-5, atol=1e-4)
        found[name] = [*gradients.values(), fired]
    for first, second in zip(*found.values(), strict=True):  # float32 to float32
        torch.testing.assert_close(first, second, rtol=0.01, atol=0.01)


def test_a_batch_without_pairs(kernels):
    """What BatchTopK gives when no preactivation is positive."""
    x, table = normal(5, 4), normal(6, 4, seed=1)
    pairs = kernels.largest_of_batch(-normal(5, 6).abs().bfloat16(), 10)
    found = kernels.forward_backward(x, x, table, torch.zeros(6), table, pairs, [6], [-0.5])
    assert torch.equal(found.errors[0], x)
    assert torch.equal(found.upstream[0], -0.5 * x)
    gradients = {name: torch.ones(6, 4) if name != "b_enc" else torch.ones(6) for name in NAMES}
    assert not kernels.weight_gradients(x, found, pairs, [6], gradients).any()
    assert not any(value.any() for value in gradients.values())


@pytest.mark.parametrize("unit", [True, False])
def test_adam_equals_torch(kernels, unit):
    """Over several steps; with `unit`, torch's on the projected gradient, then normalised.

    Mutations tried in sparse_step.cpp: epsilon inside the root; the projection left out.
    """
    weights = F.normalize(normal(20, 33), dim=1)
    other = torch.nn.Parameter(weights.clone())
    theirs = torch.optim.Adam([other], lr=3e-3)
    mean, square = torch.zeros_like(weights), torch.zeros_like(weights)
    shadow = weights.bfloat16()
    for step in range(1, 6):
        gradient = normal(20, 33, seed=step)
        gradient[3] = 0
        kernels.adam_rows(
            weights, gradient, mean, square, lr=3e-3, step=step, unit=unit, shadow=shadow
        )
        rows = other.detach()
        along = (gradient * rows).sum(1, keepdim=True) * rows
        other.grad = gradient - along if unit else gradient.clone()
        theirs.step()
        if unit:
            with torch.no_grad():
                other /= other.norm(dim=1, keepdim=True)
        assert torch.allclose(weights, other, atol=1e-6)
        assert torch.equal(shadow, weights.bfloat16())


@needs_compiler
@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 10_000), st.data())
def test_compiled_selection_for_any_shape(tokens, n, seed, data):
    k = data.draw(st.integers(1, n))
    pre = (normal(tokens, n, seed=seed) * 3).round().bfloat16()  # many ties
    kernels = kernels_for(torch.device("cpu"))
    chosen = kernels.largest(pre, k).features.view(tokens, k).long()
    expected = pre.topk(k, dim=1).values.relu()
    found = pre.gather(1, chosen).relu().sort(dim=1, descending=True).values
    assert torch.equal(found, expected)


@needs_compiler
def test_sums_do_not_depend_on_the_number_of_threads():
    """What makes a resumed run equal to the bit on a machine with other cores."""
    kernels = kernels_for(torch.device("cpu"))
    x, W_enc, W_dec = normal(300, 24), normal(64, 24, seed=1), normal(64, 24, seed=2)
    _, pairs = some_pairs(300, 64, seed=3)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found = kernels.forward_backward(x, x, W_enc, torch.zeros(64), W_dec, pairs, [64], [-0.1])
        gradients = {
            "W_enc": torch.empty(64, 24),
            "b_enc": torch.empty(64),
            "W_dec": x.new_empty(64, 24),
        }
        kernels.weight_gradients(x, found, pairs, [64], gradients)
        results.append([found.values, found.slopes, *gradients.values()])
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_without_a_compiler_training_uses_pytorch(monkeypatch, caplog):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    forget()
    try:
        assert type(kernels_for(torch.device("cpu"))) is Reference
        assert "no C++ compiler" in caplog.text
    finally:
        forget()


@needs_compiler
def test_a_broken_compiler_is_reported(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation, "_COMMON", ["-no-such-flag"])
    forget()
    try:
        assert type(kernels_for(torch.device("cpu"))) is Reference
        assert "no-such-flag" in caplog.text
        assert list((tmp_path / "saekit" / "native").iterdir()) == []
    finally:
        forget()


def test_products_without_the_private_operation(monkeypatch):
    """By hand, and as with it.  Mutation tried: the parts' owners not split."""
    x, table = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [1.0, -1.0]])
    pairs = Pairs(torch.tensor([0, 1, 1], dtype=torch.int32), torch.tensor([0, 2, 3]))
    with_it = reference.pair_products(x, table, pairs)
    monkeypatch.setattr(reference, "_BAG_PRODUCTS", None)
    monkeypatch.setattr(reference, "_GATHERED", 2)
    for found in (with_it, reference.pair_products(x, table, pairs)):
        assert found.tolist() == [1.0, -1.0, -1.0]
    nothing = Pairs(torch.zeros(0, dtype=torch.int32), torch.zeros(3, dtype=torch.int64))
    assert reference.pair_products(x, table, nothing).tolist() == []
