"""GGUF files, written here with the package gguf: the model that comes out is the one put in."""

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from saekit.errors import ModelError
from saekit.model.gguf import architecture, converted, file_hash
from saekit.model.loading import load_model

HEADS, KEYS = 4, 2


@pytest.fixture(scope="module")
def llama(tiny_model):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny_model.d_vocab, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=KEYS, max_position_embeddings=64,
        rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def in_pairs(W: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries and keys as GGUF stores them: the two of a rotated pair beside each other."""
    return W.reshape(heads, 2, -1, W.shape[1]).swapaxes(1, 2).reshape(W.shape)


def write(path, hf, tokenizer, kind="llama"):
    """What llama.cpp's converter writes, for the fields and tensors that are read here."""
    writer, config = gguf.GGUFWriter(path, kind), hf.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    content = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokens[0] else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in content["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in hf.state_dict().items():
        W = value.numpy()
        if "q_proj" in name:
            W = in_pairs(W, HEADS)
        elif "k_proj" in name:
            W = in_pairs(W, KEYS)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), W)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_model_is_the_one_that_was_written(llama, tiny_model, tmp_path):
    path = write(tmp_path / "tiny.gguf", llama, tiny_model.tokenizer)
    assert architecture(path) == "llama"
    model = load_model(str(path))
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        torch.testing.assert_close(model.hf(ids).logits, llama(ids).logits, rtol=1e-5, atol=1e-5)
    text = 'The opposite of "large" is "'
    assert model.tokens(text) == tiny_model.tokens(text)
    folder = converted(path)
    assert folder.name == file_hash(path)[:16]
    before = (folder / "config.json").stat().st_mtime_ns
    assert converted(path) == folder and (folder / "config.json").stat().st_mtime_ns == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]  # nothing half done is left


def test_another_family_is_named(llama, tiny_model, tmp_path):
    path = write(tmp_path / "other.gguf", llama, tiny_model.tokenizer, kind="mamba")
    with pytest.raises(ModelError, match="holds a mamba; saekit reads gpt2, llama, qwen2 from"):
        load_model(str(path))


@pytest.mark.parametrize("keep", [0, 3, 200, 0.5])
def test_a_broken_file_is_one_sentence(llama, tiny_model, tmp_path, keep):
    whole = write(tmp_path / "whole.gguf", llama, tiny_model.tokenizer).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(ModelError, match=r"cut\.gguf (is not a whole GGUF file|cannot be conv)"):
        load_model(str(path))
    assert not list((tmp_path / "cache" / "saekit" / "models").glob("*"))


def test_without_the_package_the_sentence_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match="pip install gguf"):
        load_model(str(tmp_path / "x.gguf"))
