"""Opening models: what is the same as in plain transformers, and each way it can fail."""

import json
import shutil
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2LMHeadModel

from saekit.errors import InputError, ModelError
from saekit.model.loading import load_model

SEED_PROMPT = 'The opposite of "large" is "'


@pytest.fixture
def copy(tiny_model_folder, tmp_path):
    """A copy of the tiny model that a test may spoil."""
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_sizes(tiny_model):
    assert (tiny_model.n_layers, tiny_model.n_heads) == (3, 4)
    assert (tiny_model.d_model, tiny_model.d_head) == (32, 8)
    assert tiny_model.n_ctx == 64
    assert tiny_model.d_vocab == len(tiny_model.vocabulary) == 640
    assert tiny_model.bos == 0
    assert not tiny_model.hf.training


def test_same_as_plain_transformers(tiny_model, tiny_model_folder):
    hf = GPT2LMHeadModel.from_pretrained(tiny_model_folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    ids = tiny_model.prompt(SEED_PROMPT)
    assert ids.tolist() == [0, *tokenizer.encode(SEED_PROMPT, add_special_tokens=False)]
    with torch.no_grad():
        expected = hf(ids[None]).logits[0, -1].softmax(-1)
    torch.testing.assert_close(tiny_model.probabilities(ids), expected)


def test_prompt_and_token_texts(tiny_model):
    ids = tiny_model.prompt(SEED_PROMPT)
    assert "".join(tiny_model.token_strings(ids[1:].tolist())) == SEED_PROMPT
    assert len(tiny_model.tokens(SEED_PROMPT)) == 8
    assert tiny_model.encode_batch([SEED_PROMPT, "large"]) == [
        tiny_model.tokens(SEED_PROMPT),
        tiny_model.tokens("large"),
    ]
    without = load_model(tiny_model)
    assert without is tiny_model
    assert tiny_model.single_token("large") != tiny_model.single_token(" large")


def test_a_device_that_is_not_there(tiny_model_folder):
    with pytest.raises(InputError, match='no device "abacus" here: use cpu'):
        load_model(str(tiny_model_folder), device="abacus")


def test_without_bos(tiny_model_folder):
    model = load_model(str(tiny_model_folder), prepend_bos=False)
    assert model.prompt("large").tolist() == model.tokens("large")


def test_prompts_that_cannot_be_read(tiny_model):
    for text in ("", "  \n"):
        with pytest.raises(InputError, match="prompt is empty"):
            tiny_model.prompt(text)
    assert len(tiny_model.prompt(" large" * 63)) == 64
    with pytest.raises(InputError, match="has 64 tokens; .* reads at most 63"):
        tiny_model.prompt(" large" * 64)
    with pytest.raises(InputError, match=r'"large small" is not one token .* but 2: "large", " s'):
        tiny_model.single_token("large small")


def test_fingerprint_sees_every_weight_and_not_the_precision(tiny_model, copy):
    """Mutation tried: leaving biases out of the digest fails here."""
    assert load_model(str(copy)).fingerprint == tiny_model.fingerprint
    assert load_model(str(copy), dtype=torch.float16).fingerprint == tiny_model.fingerprint
    for name in ("transformer.ln_f.bias", "transformer.h.1.attn.c_attn.weight"):

        def change(tensors, name=name):
            tensors[name].view(-1)[3] += 0.01

        before = load_model(str(copy)).fingerprint
        change_weights(copy, change)
        assert load_model(str(copy)).fingerprint != before


def test_a_loaded_transformers_model_is_wrapped(tiny_model, tiny_model_folder):
    hf = GPT2LMHeadModel.from_pretrained(tiny_model_folder, dtype=torch.float32)
    model = load_model(hf)
    assert model.hf is hf and not hf.training
    assert model.fingerprint == tiny_model.fingerprint
    assert model.tokens(SEED_PROMPT) == tiny_model.tokens(SEED_PROMPT)


def test_opening_is_quiet(tiny_model_folder, capfd):
    load_model(str(tiny_model_folder))
    assert capfd.readouterr() == ("", "")


def test_not_a_model(tmp_path):
    with pytest.raises(ModelError, match="is not a model folder: no config.json"):
        load_model(str(tmp_path))
    (tmp_path / "file").write_text("text")
    for wrong in (str(tmp_path / "file"), str(tmp_path / "missing"), "./missing", "~/missing"):
        with pytest.raises(ModelError, match="is not a model folder"):
            load_model(wrong)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_broken_config(copy, text):
    (copy / "config.json").write_text(text)
    with pytest.raises(ModelError, match="is not a model folder"):
        load_model(str(copy))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_head", 0, "has n_head 0"),
        ("n_head", -12, "has n_head -12"),
        ("n_head", None, "cannot be read .*n_head"),
        ("n_embd", "a", "cannot be read .*n_embd"),
        ("scale_attn_weights", "false", "cannot be read .*scale_attn_weights"),
    ],
)
def test_a_field_of_another_kind_is_named(copy, field, value, said):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(ModelError, match=said):
        load_model(str(copy))


def test_an_unknown_family(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(
        ModelError, match="is a bert; saekit reads gpt2, llama, mistral, qwen2 models"
    ):
        load_model(str(copy))


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_weights(copy, keep):
    path = copy / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ModelError, match=r"weights of .* cannot be read \(.+\)\.$"):
        load_model(str(copy))


def test_missing_weights(copy):
    change_weights(copy, lambda tensors: tensors.pop("transformer.h.2.mlp.c_fc.bias"))
    with pytest.raises(
        ModelError, match=r"1 are missing, first transformer\.h\.2\.mlp\.c_fc\.bias"
    ):
        load_model(str(copy))
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="weights of .* cannot be read"):
        load_model(str(copy))


def test_weights_of_another_size(copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "n_embd": 64}))
    with pytest.raises(ModelError, match="weights of .* cannot be read"):
        load_model(str(copy))


def test_pickled_weights_are_not_opened(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights of .* cannot be read"):
        load_model(str(copy))


def test_tokenizer_missing_or_too_large(copy):
    (copy / "config.json").write_text((copy / "config.json").read_text().replace("640", "600"))

    def cut_embedding(tensors):
        name = "transformer.wte.weight"
        tensors[name] = tensors[name][:600].clone()

    change_weights(copy, cut_embedding)
    with pytest.raises(ModelError, match="has 640 tokens, the model 600"):
        load_model(str(copy))
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError, match="holds no tokenizer"):
        load_model(str(copy))


@pytest.mark.parametrize("name", ["gpt2", "nobody/no-such-model", "no such model"])
def test_unknown_model_without_a_network(name, capfd):
    start = time.perf_counter()
    with pytest.raises(ModelError, match=f'"{name}" is neither .* use gpt2-mini or the path of'):
        load_model(name)
    assert time.perf_counter() - start < 3
    assert capfd.readouterr() == ("", "")


def test_unreachable_hub_is_reported_quickly_and_quietly(monkeypatch, capfd, tmp_path):
    """Online mode, but nothing answers at the address of the hub."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ModelError, match="offline, or no such id"):
        load_model("nobody/no-such-model")
    assert time.perf_counter() - start < 5
    assert capfd.readouterr() == ("", "")


def test_a_model_of_the_hub_is_opened_from_its_download(tiny_model, tiny_model_folder, monkeypatch):
    """The hub is asked once, for safetensors and tokenizer only; the id stays the user's."""
    from saekit.model import loading

    asked = []

    def download(repository, allow_patterns):
        asked.append(repository)
        assert not any("bin" in pattern for pattern in allow_patterns)
        return str(tiny_model_folder)

    monkeypatch.setattr(loading, "snapshot_download", download)
    model = load_model("gpt2-small")
    assert asked == ["gpt2"]
    assert model.id == "gpt2-small"
    assert model.fingerprint == tiny_model.fingerprint
