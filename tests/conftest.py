"""What all tests share: no network, checked shapes, a tiny random GPT-2, Chromium if present.

Fixtures import what they need themselves, so tests of torch-free modules start at once.
"""

import os
import shutil
from itertools import islice

import pytest
from jaxtyping import install_import_hook

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
install_import_hook("saekit", "shape_checks.checked")  # before any module of saekit is imported


VOCABULARY = 640  # "large", " large" and other frequent words are one token each


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory):
    """A random GPT-2 as a Hugging Face folder: 3 layers, 4 heads, d_model 32, n_ctx 64.

    The seed prompt is 8 tokens, as in gpt2-mini.
    LayerNorm weights and all biases are far from their initial 1 and 0, and attention is not
    uniform, so that an ignored weight changes the result.
    """
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from saekit.model.pretraining.saving import save_model
    from saekit.text import relational
    from saekit.text.tokenizer import train_tokenizer

    frequent = " ".join(f'"{word}" {word}' for word in relational.relation_words()[0][:40])
    text = [*islice(relational.documents(seed=1), 400), *[frequent] * 200]
    tokenizer = train_tokenizer(text, VOCABULARY)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=tokenizer.get_vocab_size(), n_positions=64, n_embd=32, n_layer=3, n_head=4,
            bos_token_id=0, eos_token_id=0, initializer_range=0.15,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("tiny_model")
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tiny_model_folder):
    """`tiny_model_folder`, opened by saekit.  Shared by all tests: do not change its weights."""
    from saekit.model.loading import load_model

    return load_model(str(tiny_model_folder))


@pytest.fixture(scope="session")
def gated_model(tiny_model):
    """`tiny_model` with gated attention; about half of the edges of the seed prompt are closed."""
    import copy

    import torch

    from saekit.model.gating import install
    from saekit.model.loading import LanguageModel

    hf = copy.deepcopy(tiny_model.hf)
    generator = torch.Generator().manual_seed(4)
    hf.config.attention = "gated"
    hf.config.gate_bias = (0.3 * torch.randn(3, 4, generator=generator)).tolist()
    install(hf)
    return LanguageModel("gated", hf, tiny_model.tokenizer)


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of Debian's Chromium; the test is skipped where there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed (.ci/run installs it)")
    return path
