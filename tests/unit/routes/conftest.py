"""Planted circuits: a GPT-2 in which everything but chosen heads is silent.

u, v and the vector of ones are orthogonal.  Only the token "large" has a component along u (3 u);
no embedding has one along v.  A planted head attends uniformly, reads u and writes `strength` v.
The dictionaries of all layers have feature 0 = u and feature 1 = v; the rest is their error.
"""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from saekit.concepts.catalogue import Catalogue, Concept, LayerScore
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import DictionarySet

PROMPT = 'The opposite of "large" is "'  # 8 tokens, "large" is token 5
D_MODEL, N_LAYERS, N_HEADS, D_HEAD = 32, 3, 4, 8


@pytest.fixture(scope="session")
def basis():
    """(u, v): orthonormal, both with mean 0."""
    generator = torch.Generator().manual_seed(1)
    columns = torch.cat([torch.ones(D_MODEL, 1), torch.randn(D_MODEL, 2, generator=generator)], 1)
    q, _ = torch.linalg.qr(columns.double())
    return q[:, 1], q[:, 2]


@pytest.fixture(scope="session")
def planted(tiny_model, basis):
    """planted({(layer, head): strength}) -> LanguageModel in float64."""
    from transformers import GPT2Config, GPT2LMHeadModel

    def build(heads: dict[tuple[int, int], float]) -> LanguageModel:
        u, v = basis
        vocabulary = tiny_model.d_vocab
        hf = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=vocabulary, n_positions=64, n_embd=D_MODEL, n_layer=N_LAYERS,
                n_head=N_HEADS, bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
            )
        ).double().eval()  # fmt: skip
        with torch.no_grad():
            for name, parameter in hf.named_parameters():
                if "ln_" not in name:
                    parameter.zero_()
            embedding = torch.randn(
                vocabulary, D_MODEL, generator=torch.Generator().manual_seed(2)
            ).double()
            embedding -= embedding.mean(1, keepdim=True)
            embedding -= (embedding @ u)[:, None] * u + (embedding @ v)[:, None] * v
            embedding[tiny_model.single_token("large")] += 3 * u
            hf.transformer.wte.weight.copy_(embedding)
            hf.lm_head.weight[tiny_model.single_token("small")] = v
            for (layer, head), strength in heads.items():
                attention = hf.transformer.h[layer].attn
                attention.c_attn.weight[:, 2 * D_MODEL + head * D_HEAD] = u
                attention.c_proj.weight[head * D_HEAD] = strength * v
        return LanguageModel("planted", hf, tiny_model.tokenizer)

    return build


def dictionary_set(model: LanguageModel, dictionaries: dict[int, Dictionary]) -> DictionarySet:
    """A set that belongs to the model."""
    manifest = {"fingerprint": model.fingerprint, "model": model.id}
    return DictionarySet(dictionaries, manifest, Path("planted"))


@pytest.fixture(scope="session")
def known_features(basis):
    """known_features(model) -> dictionaries with feature 0 = u and feature 1 = v at all layers."""

    def build(model: LanguageModel) -> DictionarySet:
        W_enc = torch.stack(basis, 1).float()
        zeros = torch.zeros(2), torch.zeros(D_MODEL)
        return dictionary_set(
            model,
            {
                layer: Dictionary(layer, "standard", W_enc, zeros[0], W_enc.T, zeros[1])
                for layer in range(N_LAYERS + 1)
            },
        )

    return build


@pytest.fixture(scope="session")
def sharp_features(known_features):
    """`known_features`, silent below 0.01: what is 0 up to rounding is not active."""

    def build(model: LanguageModel) -> DictionarySet:
        soft = known_features(model)
        sharp = {
            layer: replace(soft[layer], architecture="jumprelu", threshold=torch.full((2,), 0.01))
            for layer in soft.layers
        }
        return dictionary_set(model, sharp)

    return build


@pytest.fixture(scope="session")
def random_dictionaries(tiny_model):
    """TopK dictionaries with 48 random features and biases at all layers of `tiny_model`."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return dictionary_set(
        tiny_model,
        {
            layer: Dictionary(
                layer, "topk", normal(32, 48), normal(48), normal(48, 32), normal(32), k=6
            )
            for layer in range(4)
        },
    )


@pytest.fixture(scope="session")
def named():
    """named(model) -> catalogue: "large" = feature 0 at all layers, "small" = 3/1 (output)."""

    def score(layer: int, feature: int, found: bool = True) -> LayerScore:
        return LayerScore(layer, found, [feature], 1.0, 1.0, 1.0, 1.0, 0.0, 10)

    def build(model: LanguageModel) -> Catalogue:
        large = Concept("large", "input", ["large"], (0, 3), [score(m, 0) for m in range(4)])
        small = Concept("small", "output", ["small"], (3, 3), [score(3, 1)])
        missing = [
            Concept(name, "input", [name], None, [score(3, 0, found=False)])
            for name in ("hot one", "cold")
        ]
        return Catalogue(
            model.id, model.fingerprint, "planted", "made by hand", 0, [large, small, *missing]
        )

    return build
