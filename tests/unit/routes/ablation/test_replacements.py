"""Ablation by zero, renormalised rows, means and counterfactual prompts; the direct path.

Mutations tried by hand, each of which fails here: rows renormalised to 1 (gated); values moved at
the edited weight or in all heads of a layer; the counterfactual's weights of another query; later
blocks live on the direct path; the pattern transposed or the value bias dropped in `direct_edges`;
BOS inside rows counted in the means; the value bias dropped from the means; means made without BOS
accepted.
"""

import pytest
import torch

from saekit.errors import FormatError, InputError, MismatchError
from saekit.model.exact import ExactModel
from saekit.model.loading import LanguageModel
from saekit.routes.ablation.head_means import HeadMeans, head_means
from saekit.routes.ablation.removal import drops, removed
from saekit.routes.ablation.replacements import RENORMALISE, ZERO, mean_values, resampled
from saekit.routes.attribution.arrivals import components, direct_edges
from saekit.routes.target import Target, token_target
from saekit.text import relational

PROMPT, OTHER = 'The opposite of "large" is "', 'The opposite of "happy" is "'
SETS = [[(0, 1)], [(2, 3)], [(0, 0), (1, 2), (2, 1)], []]


@pytest.fixture(scope="module", params=["dense", "gated"])
def model(request, tiny_model, gated_model):
    return tiny_model if request.param == "dense" else gated_model


@pytest.fixture(scope="module")
def exact(model):
    return ExactModel(model, torch.float64)


@pytest.fixture(scope="module")
def clean(exact, model):
    return exact.run(model.prompt(PROMPT))


@pytest.fixture(scope="module")
def other(exact, clean, model):
    """Another prompt of as many tokens."""
    ids = clean.ids.clone()
    ids[5] = model.single_token("small")
    ids[3] = model.single_token(" small")
    return exact.run(ids)


@pytest.fixture(scope="module")
def means(model):
    return head_means(model, lambda: relational.documents(seed=3), tokens=2000, context=16)


@pytest.fixture(scope="module")
def target():
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0)).double()
    return Target("random", "feature", 3, 8, direction, 0.3, feature=0)


def by_hand(exact, clean, target, heads, keys, instead) -> float:
    """The drop in plain loops: position q block by block, other positions clean."""
    q = target.query
    x = clean.resid[0, q]
    for m in range(target.layer):
        w = exact.blocks[m]
        own = exact.norm(x, w.gamma1, w.beta1)[0] @ w.W_QKV + w.b_QKV
        mid = x + w.b_O
        for h in range(exact.n_heads):
            at = slice(h * 8, h * 8 + 8)
            query, key, value = own[:32][at], own[32:64][at], own[64:][at]
            k_all = torch.cat([clean.key[m, h, :q], key[None]])
            v_all = torch.cat([clean.value[m, h, :q], value[None]]).clone()
            scores = k_all @ query * w.score_scale
            weights = scores.softmax(0)
            if exact.gate_bias is not None:
                weights = weights * (scores + exact.gate_bias[m, h] > 0)
            if (m, h) in heads:
                whole = weights.sum()
                for k in keys:
                    if instead.weight is not None:
                        weights[k] = instead.weight[m, h, q, k]
                    if instead.value is None:
                        weights[k] = 0
                    else:
                        v_all[k] = instead.value[m, h, k]
                if instead.renormalise and weights.sum() > 0:
                    weights = weights * whole / weights.sum()
            mid = mid + weights @ v_all @ w.W_O[h]
        z = exact.norm(mid, w.gamma2, w.beta2)[0] @ w.W_in + w.b_in
        x = mid + (z * exact.gate(z)) @ w.W_out + w.b_out
    return target.value(clean) - float(target.measure(exact, x))


@pytest.mark.parametrize("kind", ["zero", "renormalise", "mean", "resample", "resample full"])
def test_every_ablation_equals_plain_loops(exact, clean, other, means, target, kind):
    instead = {
        "zero": ZERO,
        "renormalise": RENORMALISE,
        "mean": mean_values(exact, clean, means),
        "resample": resampled(clean, other),
        "resample full": resampled(clean, other, weights=True),
    }[kind]
    assert instead.name == kind
    for keys in ([5], [1, 2, 7], list(range(9))):
        found = drops(exact, clean, target, SETS, keys, instead)
        expected = [by_hand(exact, clean, target, heads, keys, instead) for heads in SETS]
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-11)
        assert found[3] == pytest.approx(0, abs=1e-12)
        assert max(map(abs, found)) > 1e-3


def test_resampling_from_an_equal_prompt_would_change_nothing(exact, clean, other, target):
    """Positions before the first difference move what they moved."""
    instead = resampled(clean, other)
    assert drops(exact, clean, target, SETS, [1, 2], instead) == pytest.approx([0] * 4, abs=1e-11)
    with pytest.raises(InputError, match="the prompt itself"):
        resampled(clean, exact.run(clean.ids))
    with pytest.raises(InputError, match="has 5 tokens and the prompt 9"):
        resampled(clean, exact.run(clean.ids[:5]))
    short = resampled(exact.run(clean.ids[:5]), exact.run(other.ids[:5].flip(0)))
    with pytest.raises(InputError, match="are for 5 tokens, the prompt has 9"):
        drops(exact, clean, target, SETS, [1], short)


def test_the_direct_path_is_the_attribution(exact, clean, target):
    """Path-patched zero ablation of edges takes exactly their direct attribution."""
    edges = direct_edges(exact, clean, target)
    for keys in ([5], [1, 2, 7], list(range(9))):
        found = drops(exact, clean, target, SETS, keys, direct=True)
        expected = [sum(float(edges[m, h, keys].sum()) for m, h in heads) for heads in SETS]
        assert found == pytest.approx(expected, rel=1e-10, abs=1e-12)
    table = dict(components(exact, clean, target))
    assert float(edges[1, 2].sum()) == pytest.approx(table["L1-H2"], rel=1e-10)
    assert (
        direct_edges(exact, clean, Target("x", "feature", 0, 8, target.direction, 0.0)).shape[0]
        == 0
    )


def test_direct_and_live_differ_by_what_later_components_make_of_it(exact, clean):
    """At layer 1 that is the MLP of block 0, which reads the change."""
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1)).double()
    low = Target("low", "feature", 1, 8, direction, 0.0, feature=0)
    heads, w = [(0, h) for h in range(4)], exact.blocks[0]
    live, direct = (drops(exact, clean, low, [heads], [5], direct=on)[0] for on in (False, True))
    assert abs(live - direct) > 1e-4
    moved = torch.einsum("h,hd,hdm->m", clean.pattern[0, :, 8, 5], clean.value[0, :, 5], w.W_O)
    z = exact.norm(clean.mid[0, 8] - moved, w.gamma2, w.beta2)[0] @ w.W_in + w.b_in
    mlp = (z * exact.gate(z)) @ w.W_out + w.b_out
    assert live - direct == pytest.approx(float((clean.mlp_out[0, 8] - mlp) @ direction), rel=1e-8)


def test_a_path_patched_logit_has_the_final_norm_live(exact, clean):
    target = token_target(exact, clean, 5, 8, "x")
    heads = [(1, 0), (2, 2)]
    resid = removed(exact, clean, 8, [heads], [5], direct=True)
    moved = sum(
        clean.pattern[m, h, 8, 5] * (clean.value[m, h, 5] @ exact.blocks[m].W_O[h])
        for m, h in heads
    )
    torch.testing.assert_close(resid[0], clean.resid[3, 8] - moved)
    logits = exact.unembed(resid)[0][0]
    expected = target.value(clean) - float(logits[5] - logits.mean())
    assert drops(exact, clean, target, [heads], [5], direct=True)[0] == pytest.approx(expected)


def test_means_are_those_of_plain_forward_passes(exact, means, model):
    from itertools import islice

    from saekit.activations import context_rows

    rows = islice(context_rows(model, relational.documents(seed=3), 16), 2000 // 16)
    ids = [torch.from_numpy(row.astype("int64")) for row in rows]
    values = torch.stack([exact.run(row).value for row in ids])  # [row, layer, head, pos, d_head]
    real = torch.stack(ids) != model.bos
    for position in (1, 7):
        expected = values[real[:, position]][:, :, :, position].mean(0)
        torch.testing.assert_close(
            means.value[:, :, position].double(), expected, rtol=1e-4, atol=1e-5
        )
        assert int(means.count[position]) == int(real[:, position].sum())
    assert int(means.count[0]) == len(ids)
    kept = values[:, :, :, 1:].permute(0, 3, 1, 2, 4)[real[:, 1:]]
    torch.testing.assert_close(means.overall.double(), kept.mean(0), rtol=1e-4, atol=1e-5)
    longer = means.at(20)
    assert longer.shape == (3, 4, 20, 8)
    torch.testing.assert_close(longer[:, :, 16:], means.overall[:, :, None].expand(-1, -1, 4, -1))
    torch.testing.assert_close(longer[:, :, :16], means.value)


def test_means_file(means, model, tiny_model, gated_model, tmp_path):
    path = tmp_path / "means.safetensors"
    means.save(path)
    again = HeadMeans.load(path)
    again.check(model)
    torch.testing.assert_close(again.value, means.value)
    assert (again.tokens, again.model, again.prepend_bos) == (means.tokens, model.id, True)
    another = tiny_model if model is gated_model else gated_model
    with pytest.raises(MismatchError, match=f"{model.fingerprint}.*has {another.fingerprint}"):
        again.check(another)
    without = LanguageModel(model.id, model.hf, model.tokenizer, prepend_bos=False)
    with pytest.raises(
        MismatchError, match="read with prepend_bos=True; .* is read with prepend_bos=False"
    ):
        again.check(without)
    with pytest.raises(FormatError, match="cannot be read"):
        HeadMeans.load(tmp_path / "absent")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FormatError, match="cannot be read"):
        HeadMeans.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(FormatError, match="schema_version None"):
        HeadMeans.load(path)
    save_file({"x": torch.zeros(1)}, path, {"schema_version": "1"})
    with pytest.raises(FormatError, match="not a complete file of head means: 'model'"):
        HeadMeans.load(path)
    with pytest.raises(InputError, match="at least 1"):
        head_means(model, ["text"], tokens=0)
    with pytest.raises(InputError, match="shorter than one context"):
        head_means(model, ["text"], tokens=10)
