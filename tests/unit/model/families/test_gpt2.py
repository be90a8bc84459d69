"""Every field of GPT-2's config: right in every pass, or refused; and in the fingerprint.

Mutations tried by hand, each of which fails here: the score scale of layer m without 1 / (m + 1);
eps of the default; the untied head replaced by the embedding; quick_gelu computed as silu; the
gates left out of `exact.rerun`; the change of a clamped feature not scaled back; n_head left out of
the fingerprint.
"""

import copy

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from saekit.activations import final_norm, residuals, run_blocks, unembed
from saekit.activations.bf16 import NarrowForward, can_run
from saekit.errors import ModelError
from saekit.features.effects import Clamping
from saekit.model.exact import Edits, ExactModel
from saekit.model.gating import install
from saekit.model.loading import LanguageModel, load_model
from saekit.sae.dictionary import NORMALISATIONS, Dictionary
from saekit.sae.splicing import ZeroAblation, clean_output, splice_losses

SIZE = {"vocab_size": 90, "n_positions": 32, "n_embd": 32, "n_layer": 3, "n_head": 4,
        "initializer_range": 0.15, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
CONFIGS = {
    "default": {},
    "n_inner": {"n_inner": 40},
    "epsilon": {"layer_norm_epsilon": 0.1},
    "scores as they are": {"scale_attn_weights": False},
    "scores by layer": {"scale_attn_by_inverse_layer_idx": True},
    "upcast": {"reorder_and_upcast_attn": True},
    "untied": {"tie_word_embeddings": False},
    "one head": {"n_head": 1},
    "heads of 2": {"n_head": 16},
    "dropout": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    **{name: {"activation_function": name}
       for name in ("gelu_fast", "gelu_pytorch_tanh", "gelu", "relu", "silu", "quick_gelu")},
}  # fmt: skip
GATED = {"attention": "gated", "gate_bias": [[0.3, -0.2, 0.1, -0.4]] * 3}
IDS = torch.randint(1, 90, (2, 9), generator=torch.Generator().manual_seed(1))


def build(tokenizer=None, seed=0, **changes) -> LanguageModel:
    """A random model whose biases and norms matter."""
    torch.manual_seed(seed)
    hf = GPT2LMHeadModel(GPT2Config(**{**SIZE, **changes})).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for value in hf.parameters():
            if value.dim() == 1:
                value += 0.3 * torch.randn(value.shape, generator=generator)
    install(hf)
    return LanguageModel("made", hf, tokenizer, prepend_bos=False)


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", [*CONFIGS, "gated"])
def test_every_pass_is_what_transformers_computes(name):
    model = build(**(GATED if name == "gated" else CONFIGS[name]))
    double = LanguageModel("made", copy.deepcopy(model.hf).double(), None, prepend_bos=False)
    with torch.no_grad():
        full = double.hf(IDS, output_hidden_states=True)
    # transformers rounds to float32 inside where it "upcasts"; its last hidden state is normed
    bound = 1e-6 if name == "upcast" else 1e-12
    states = torch.stack(full.hidden_states[:-1])
    exact = ExactModel(double, torch.float64)
    for row, ids in enumerate(IDS):
        clean = exact.run(ids)
        assert relative(clean.logits, full.logits[row]) < bound
        assert relative(clean.resid[:-1], states[:, row]) < bound
        assert relative(exact.norm(clean.resid[-1], exact.gamma_f, exact.beta_f)[0],
                        full.hidden_states[-1][row]) < bound  # fmt: skip
    bulk = residuals(double, IDS)
    assert relative(bulk[:-1], states) < bound
    assert relative(final_norm(double, bulk[-1]), full.hidden_states[-1]) < bound
    assert relative(unembed(double, bulk[-1]), full.logits) < bound
    single = residuals(model, IDS)
    assert relative(single.double(), bulk) < 1e-5
    if can_run(model):  # in bfloat16: what the blocks add, to its precision
        narrow = NarrowForward(model, IDS.numel())(IDS, [3], torch.arange(IDS.numel())).float()
        added = bulk[3] - bulk[0]
        assert relative(narrow[0] - bulk[0].flatten(0, 1), added.flatten(0, 1)) < 0.03


@pytest.mark.parametrize(
    ("field", "value", "reads"),
    [
        ("activation_function", "mish", "one of gelu_new"),
        ("add_cross_attention", True, "so false"),
        ("quantization_config", {"quant_method": "gptq"}, "plain weights"),
    ],
)
def test_what_cannot_be_expressed_is_refused_with_its_field(field, value, reads):
    hf = copy.deepcopy(build().hf)
    setattr(hf.config, field, value)
    model = LanguageModel("made", hf, None)
    for compute in (lambda: ExactModel(model), lambda: residuals(model, IDS)):
        with pytest.raises(ModelError, match=rf"has {field} .*; saekit reads .*{reads}"):
            compute()


def test_a_folder_that_cannot_be_expressed_is_refused(tiny_model_folder, tmp_path):
    import json
    import shutil

    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["activation_function"] = "mish"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="activation_function mish"):
        load_model(str(folder))


SHAPES = {"dense": {}, "gated": GATED, "one head": {"n_head": 1}, "untied": CONFIGS["untied"]}


def dictionary_of(model, layer, normalisation, apply_b_dec=True):
    generator = torch.Generator().manual_seed(layer)
    W_dec = torch.randn(24, model.d_model, generator=generator)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    return Dictionary(
        layer, "topk", W_dec.T.contiguous(), torch.zeros(24), W_dec,
        0.1 * torch.randn(model.d_model, generator=generator), k=4,
        apply_b_dec_to_input=apply_b_dec, normalize_activations=normalisation,
    )  # fmt: skip


@pytest.mark.parametrize("shape", SHAPES)
def test_the_empty_edit_returns_the_clean_run(shape):
    """Of the exact rerun, the bulk pass and the spliced pass, from every layer."""
    model = build(**SHAPES[shape])
    exact = ExactModel(model)
    clean = exact.run(IDS[0])
    bulk = residuals(model, IDS)
    kept = torch.ones(IDS.shape, dtype=torch.bool)
    output = clean_output(model, bulk[-1], IDS, kept)
    for layer in range(4):
        last = exact.rerun(clean, Edits(), (4, 8), layer, batch=2)
        assert relative(last[1], clean.resid[-1, 4:9]) < 1e-5
        assert relative(run_blocks(model, bulk[layer], layer, 3), bulk[-1]) < 1e-5
        losses = splice_losses(
            model, output, ZeroAblation(True), bulk[layer], layer, kept, bulk[layer].flatten(0, 1)
        )
        assert losses["kl_div_with_sae"].abs().max() < 1e-5
        assert losses["kl_div_with_ablation"].max() > 0.01


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_feature_set_to_what_it_is_changes_nothing(shape, normalisation):
    model = build(**SHAPES[shape])
    clamping = Clamping(model, IDS[:1])
    for layer in range(4):
        dictionary = dictionary_of(model, layer, normalisation)
        own = dictionary.encode(residuals(model, IDS[:1], [layer])[0, 0, -1])
        changes = clamping.changes(dictionary, range(24), own.numpy())
        assert changes.abs().max() < 1e-5
        assert clamping.changes(dictionary, range(24), own.numpy() + 1).abs().min(0)[0].max() > 1e-4


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_clamped_feature_by_the_whole_forward_pass(shape, normalisation):
    """The dictionary decodes the changed features at the last position; `transformers`' blocks
    (through `run_blocks`) do the rest."""
    model = build(**SHAPES[shape])
    clamping = Clamping(model, IDS)
    for layer in (0, 2, 3):
        dictionary = dictionary_of(model, layer, normalisation)
        x = residuals(model, IDS, [layer])[0]
        features = dictionary.encode(x[:, -1])
        changed = features.clone()
        changed[:, 5] = 2.5
        moved = x.clone()
        moved[:, -1] += dictionary.decode(changed, x[:, -1]) - dictionary.decode(features, x[:, -1])
        ends = [final_norm(model, run_blocks(model, y, layer, 3))[:, -1] for y in (moved, x)]
        found = clamping.changes(dictionary, [5], np.array([2.5]))[0]
        assert relative(found, (ends[0] - ends[1]).mean(0)) < 1e-4


def test_the_fingerprint_covers_what_changes_the_function():
    def fingerprint(**changes):
        return build(**changes).fingerprint

    default = fingerprint()
    same = {"gelu_fast": {"activation_function": "gelu_fast"}, "upcast": CONFIGS["upcast"],
            "dropout": CONFIGS["dropout"]}  # fmt: skip
    assert {fingerprint(**changes) for changes in same.values()} == {default}
    others = [fingerprint(**CONFIGS[name]) for name in CONFIGS
              if name not in ("default", "gelu_pytorch_tanh", *same)]  # fmt: skip
    assert len({default, *others, fingerprint(**GATED)}) == len(others) + 2


def test_an_untied_head_of_equal_values_is_the_same_model():
    tied = build()
    hf = GPT2LMHeadModel(GPT2Config(**SIZE, tie_word_embeddings=False)).eval()
    hf.load_state_dict(tied.hf.state_dict())
    assert LanguageModel("other", hf, None).fingerprint == tied.fingerprint
    with torch.no_grad():
        hf.lm_head.weight[3, 4] += 1
    assert LanguageModel("other", hf, None).fingerprint != tied.fingerprint


def test_the_bundled_models_fingerprint_stays():
    """Every shipped set and every set that people trained names it."""
    model = load_model("gpt2-mini")
    assert model.fingerprint == "7c702e3ad4bf9260f47adb37d69c5b6176b42dac8cd104c123af475a50687ab3"
