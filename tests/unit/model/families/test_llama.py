"""Llama's relatives: every pass is what `transformers` computes, attributions add up, or a refusal.

Mutations tried by hand, each of which fails here: keys not turned in `exact`; the halves of a
rotation swapped; the heads that share keys taken in turn instead of in rows; the mean taken off in
RMSNorms; SiLU applied to the wrong half of the MLP; the key's columns of head h taken at h.
"""

import copy

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mistral.modeling_mistral import MistralRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from saekit.activations import final_norm, residuals, unembed
from saekit.errors import ModelError
from saekit.model.decoder import Rotary
from saekit.model.exact import Edits, ExactModel
from saekit.model.loading import LanguageModel, check_family
from saekit.routes.attribution.arrivals import arrivals, components
from saekit.routes.attribution.paths import frozen_maps
from saekit.routes.attribution.qk import split_score
from saekit.routes.target import token_target
from saekit.sae.dictionary import Dictionary

SIZE = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
SCALED = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
        "original_max_position_embeddings": 16}  # fmt: skip
LLAMA = (LlamaConfig, LlamaForCausalLM)
MODELS = {
    "llama": (*LLAMA, {}),
    "tied, wide heads": (*LLAMA, {"tie_word_embeddings": True, "head_dim": 16}),
    "biases": (*LLAMA, {"attention_bias": True, "mlp_bias": True}),
    "no shared keys": (*LLAMA, {"num_key_value_heads": 4}),
    "one head of keys": (*LLAMA, {"num_key_value_heads": 1}),
    "epsilon": (*LLAMA, {"rms_norm_eps": 0.1}),
    "gelu": (*LLAMA, {"hidden_act": "gelu_pytorch_tanh"}),
    "llama3": (*LLAMA, {"rope_parameters": SCALED}),
    "linear": (*LLAMA, {"rope_parameters": LINEAR}),
    "yarn": (*LLAMA, {"rope_parameters": YARN}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {}),
}
IDS = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))


def build(name="llama", seed=0) -> LanguageModel:
    """A random model in float64 whose norms and biases matter."""
    config, kind, changes = MODELS[name]
    torch.manual_seed(seed)
    hf = kind(config(**{**SIZE, **changes})).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in hf.parameters():
            if value.dim() == 1:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    return LanguageModel("made", hf.double(), None, prepend_bos=False)


@pytest.fixture
def norms_in_double(monkeypatch):
    """`transformers` computes RMSNorms in float32 whatever the model's type is."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, True) + self.variance_epsilon))

    for norm in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm):
        monkeypatch.setattr(norm, "forward", forward)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", MODELS)
def test_every_pass_is_what_transformers_computes(name, norms_in_double):
    model = build(name)
    with torch.no_grad():
        full = model.hf(IDS, output_hidden_states=True)
    states = torch.stack(full.hidden_states[:-1])
    exact = ExactModel(model, torch.float64)
    for row, ids in enumerate(IDS):
        clean = exact.run(ids)
        assert relative(clean.logits, full.logits[row]) < 1e-12
        assert relative(clean.resid[:-1], states[:, row]) < 1e-12
        again = exact.rerun(clean, Edits(), (4, 8), 1)[0]
        assert relative(again, clean.resid[-1, 4:]) < 1e-12
    bulk = residuals(model, IDS)
    assert relative(bulk[:-1], states) < 1e-12
    assert relative(final_norm(model, bulk[-1]), full.hidden_states[-1]) < 1e-12
    assert relative(unembed(model, bulk[-1]), full.logits) < 1e-12
    single = LanguageModel("made", copy.deepcopy(model.hf).float(), None, prepend_bos=False)
    assert relative(residuals(single, IDS).double(), bulk) < 1e-5


@pytest.mark.parametrize("name", ["llama", "biases", "no shared keys", "qwen2", "gelu"])
@pytest.mark.parametrize("token", [5, 40])
def test_attributions_add_up(name, token):
    model = build(name)
    exact = ExactModel(model, torch.float64)
    clean = exact.run(IDS[0])
    target = token_target(exact, clean, token, 8, "x")
    logits = clean.logits[8]
    p = target.value(clean)
    assert p == pytest.approx(float(logits[token] - logits.mean()), rel=1e-12)
    found = arrivals(exact, clean, target)
    assert float(found.edges.sum()) + found.rest == pytest.approx(p, rel=1e-12, abs=1e-12)
    assert sum(value for _, value in components(exact, clean, target)) == pytest.approx(p, rel=1e-9)
    for layer in (0, 2):
        for mode in ("direct", "frozen", "gradient"):
            (paths,) = frozen_maps(exact, clean, [target], layer, mode)
            assert paths.total(clean) == pytest.approx(p, rel=1e-10, abs=1e-12)


def test_the_gradient_mode_of_a_gated_mlp_is_the_derivative():
    """Of the last block's MLP alone: paths from layer 2 with attention and norms frozen."""
    model = build("biases")
    exact = ExactModel(model, torch.float64)
    clean = exact.run(IDS[0])
    target = token_target(exact, clean, 7, 8, "x")
    (paths,) = frozen_maps(exact, clean, [target], 2, "gradient")
    w = exact.blocks[2]

    def p_of(mid):
        normed = mid / clean.scale2[2, 8] * w.gamma2 + w.beta2
        return float((mid + exact.mlp(w, normed)[-1]) @ target.direction)

    step = 1e-6 * torch.randn(32, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rise = p_of(clean.mid[2, 8] + step) - p_of(clean.mid[2, 8] - step)
    assert rise / 2 == pytest.approx(float(step @ paths.mid[0, 8]), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "one head of keys", "biases"])
@pytest.mark.parametrize("head", [(1, 0), (1, 3)])
def test_the_split_of_a_score_knows_how_far_apart_the_tokens_are(name, head):
    exact = ExactModel(build(name), torch.float64)
    clean = exact.run(IDS[0])
    W = torch.randn(24, 32, generator=torch.Generator().manual_seed(3))
    dictionary = Dictionary(1, "topk", W.T.contiguous(), torch.zeros(24), W, torch.zeros(32), k=4)
    split = split_score(exact, clean, dictionary, head, 8, 3, [0, 1, 2, 5])
    pattern = clean.pattern[head[0], head[1], 8].log()
    expected = float(pattern[3] - pattern[[0, 1, 2, 5]].mean())
    assert split.contrast == pytest.approx(expected, rel=1e-9)


def test_rotary_by_hand():
    """A quarter turn of the first pair of coordinates; the last value has no partner in it."""
    cos, sin = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    rotary = Rotary(cos, sin)
    x = torch.tensor([[3.0, 4.0, 5.0]])
    assert rotary.turned(x, torch.tensor([0])).tolist() == [[3, 4, 5]]
    turned = rotary.turned(x, torch.tensor([1]))
    assert turned.tolist() == [[-4, 3, 5]]
    assert rotary.turned(turned, torch.tensor([1]), back=True).tolist() == x.tolist()


@pytest.mark.parametrize(
    ("field", "value", "reads"),
    [
        ("hidden_act", "mish", "one of gelu_new"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
         "rope_type dynamic; saekit reads one of default"),
        ("num_key_value_heads", 3, "divisor of num_attention_heads, 4"),
        ("quantization_config", {"quant_method": "gptq"}, "plain weights"),
    ],
)  # fmt: skip
def test_what_cannot_be_expressed_is_refused_with_its_field(field, value, reads):
    config = LlamaConfig(**SIZE)
    setattr(config, field, value)
    with pytest.raises(ModelError, match=reads):
        check_family(config, "made")


def test_sliding_windows_and_unknown_families_are_refused():
    with pytest.raises(ModelError, match="sliding_window 16; saekit reads models whose heads see"):
        check_family(MistralConfig(**SIZE, sliding_window=16), "made")
    check_family(Qwen2Config(**SIZE, sliding_window=16, use_sliding_window=False), "made")
    other = LlamaConfig(**SIZE)
    other.model_type = "mamba"
    with pytest.raises(ModelError, match='"made" is a mamba; saekit reads gpt2, llama, mistral'):
        check_family(other, "made")


def test_the_fingerprint_knows_what_the_weights_do_not_say():
    base = build().fingerprint
    assert build().fingerprint == base
    for change in ({"rms_norm_eps": 0.1}, {"rope_parameters": LINEAR}, {"hidden_act": "gelu"}):
        other = build()
        for name, value in change.items():
            setattr(other.hf.config, name, value)
        assert other.fingerprint != base, change
