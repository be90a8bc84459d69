"""The whole line on a model whose feature is known: train, index, concepts."""

import json
from collections import Counter
from itertools import islice

import pytest
import torch

from saekit.activations import residuals
from saekit.cli import main
from saekit.model.loading import load_model
from saekit.model.pretraining.saving import save_model
from saekit.text import relational
from tests.unit.concepts.planted_gpt2 import ERASES, N_LAYERS, SPAN, STRENGTH, planted_gpt2

MEMBERS, D_SAE, K = 40, 48, 2

pytestmark = pytest.mark.slow  # it trains: about 30 s


@pytest.fixture(scope="module")
def line(tiny_model, tmp_path_factory):
    """The model, the dictionary set and the catalogue that the three commands made."""
    folder = tmp_path_factory.mktemp("planted_gpt2")
    text = islice(relational.documents(seed=3), 300)
    seen = Counter(i for row in tiny_model.encode_batch(list(text)) for i in row)
    words = [i for i, _ in seen.most_common() if tiny_model.vocabulary[i].strip().isalpha()]
    members = words[60 : 60 + 3 * MEMBERS : 3]  # 9% of the text, none frequent on its own
    model = planted_gpt2(len(tiny_model.vocabulary), members)
    save_model(model, tiny_model.tokenizer.backend_tokenizer, folder / "model")
    tokens = [tiny_model.vocabulary[i] for i in members]
    (folder / "own.toml").write_text(f"[planted]\ntokens = {json.dumps(tokens)}\n", "utf-8")
    out = folder / "set"
    train = ["train", folder / "model", "--out", out, "--text", "generated", "--tokens", 100_000,
             "--features", D_SAE, "--k", K, "--context", 32, "--batch-tokens", 512,
             "--float32"]  # fmt: skip
    index = ["index", out, "--text", "generated", "--tokens", 20_000]
    concepts = ["concepts", out, "--text", "generated", "--tokens", 20_000,
                "--file", folder / "own.toml", "--out", out / "concepts.json"]  # fmt: skip
    for command in (train, index, concepts):
        assert main([str(part) for part in command]) == 0
    document = json.loads((out / "concepts.json").read_text("utf-8"))
    return load_model(str(folder / "model")), out, document, members


def test_the_feature_is_where_it_was_planted(line):
    model, _, _, members = line
    ids = torch.tensor([[members[0], members[-1], next(i for i in range(99) if i not in members)]])
    streams = residuals(model, ids)[:, 0]
    last = streams[:, :, 48:].norm(dim=2)
    there = torch.zeros(N_LAYERS + 1, 3)
    there[SPAN[0] : SPAN[1] + 1, :2] = STRENGTH
    assert torch.allclose(last, there, atol=2e-3)  # the folder holds float16


def test_it_is_found_named_and_spanned_exactly(line):
    _, _, document, _ = line
    (planted,) = document["concepts"]
    assert (planted["name"], planted["kind"]) == ("planted", "input")
    found = {score["layer"]: score for score in planted["layers"] if score["found"]}
    assert sorted(found) == list(range(SPAN[0], SPAN[1] + 1))
    assert planted["span"] == list(SPAN)
    for score in found.values():
        assert score["f1"] >= 0.99
        assert score["auroc"] >= 0.99
        assert len(score["features"]) <= 3  # TopK may share a class of tokens among features
    elsewhere = [s["f1"] for s in planted["layers"] if not s["found"]]
    assert len(elsewhere) == N_LAYERS + 1 - len(found)
    assert max(elsewhere) < 0.5
    # the chains of its features cover the span and do not leave it
    chains = [[int(f.split("/")[0]) for f in chain["features"]] for chain in planted["chains"]]
    assert sorted({layer for chain in chains for layer in chain}) == list(found)
    assert len(planted["chain"]) == len(found)
    assert document["links"]["fdr"] <= 0.05


def test_a_prompt_shows_it_at_its_layers(line, capsys):
    model, out, _, members = line
    words = [model.vocabulary[i].strip() for i in members if model.vocabulary[i][0] == " "]
    prompt = f"zzz {words[0]} zzz {words[1]}"
    assert main(["concepts", str(out), "--prompt", prompt, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    ids = [model.vocabulary.index(token) for token in document["tokens"]]
    expected = [(p, *SPAN) for p, i in enumerate(ids, 1) if i in members]
    assert len(expected) == 2
    assert [(s["position"], s["first"], s["last"]) for s in document["spans"]] == expected
    for position, first, last in expected:  # its chains at this position: together as long
        there = [c for c in document["chains"] if c["position"] == position]
        assert min(c["first"] for c in there) >= first
        assert {n for c in there for n in range(c["first"], c["last"] + 1)} == {
            *range(first, last + 1)
        }


def test_a_query_by_any_of_its_tokens_finds_it(line):
    from saekit.features.index.feature_index import FeatureIndex

    model, out, document, members = line
    found = 0
    with FeatureIndex.open(out / "index.h5") as index:
        for layer in range(SPAN[0], SPAN[1] + 1):
            own = set(document["concepts"][0]["layers"][layer]["features"])
            for token in members:
                hits = index.by_token(model.vocabulary[token], layers=[layer], top=3, rank="mean")
                found += bool(own & {hit.feature for hit in hits})
    assert found >= 0.95 * MEMBERS * 3
    assert SPAN[1] == ERASES
