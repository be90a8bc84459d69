"""What comes with saekit is what its manifests say: the model, the dictionaries, their table."""

import re
from pathlib import Path

import pytest
import torch

from saekit import DictionarySet, evaluate, load_model
from saekit.bundled import DEFAULT_DICTIONARIES, bundled
from saekit.files import read_json
from saekit.text.sources import open_text

ROOT = Path(__file__).parent.parent
SET = bundled(DEFAULT_DICTIONARIES)


@pytest.fixture(scope="module")
def model():
    return load_model("gpt2-mini")


@pytest.fixture(scope="module")
def dictionaries():
    return DictionarySet.load(SET)


def test_plain_transformers_opens_the_model():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = SET / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert (hf.config.n_layer, hf.config.n_head, hf.config.n_embd) == (12, 12, 192)
    ids = tokenizer('The opposite of "large" is "')["input_ids"]
    assert len(ids) == 8
    with torch.no_grad():
        logits = hf(torch.tensor([[tokenizer.bos_token_id, *ids]])).logits[0, -1]
    assert tokenizer.decode([int(logits.argmax())]) == "small"
    assert (folder / "model.safetensors").stat().st_size <= 16e6


@pytest.mark.slow
def test_the_manifests_figures_are_the_models(model):
    """Everything but the loss on the corpus, which is not shipped."""
    from saekit.model.pretraining.behaviours import loss_per_token, measure_behaviours
    from saekit.text.corpora import prose

    manifest = read_json(SET / "model" / "manifest.json", schema_version=1)
    stored = manifest["figures"]
    assert manifest["fingerprint"] == model.fingerprint
    found = measure_behaviours(model)
    assert found == pytest.approx({name: stored[name] for name in found}, abs=0.006)
    loss = loss_per_token(model, prose(), tokens=30_000)
    assert loss == pytest.approx(stored["prose_loss"], abs=1e-3)
    assert found["seed_probability"] >= 0.8
    assert found["opposites"] >= 0.95
    assert found["opposites_held_out"] >= 0.85
    assert found["copies"] >= 0.9
    assert found["copies_answered_by_opposite"] <= 0.05
    assert found["names_held_out"] >= 0.95
    assert found["brackets"] >= 0.95
    assert stored["corpus_loss"] <= 4.5


@pytest.mark.slow
def test_sae_lens_opens_every_dictionary_with_equal_outputs(dictionaries):
    from sae_lens import SAE

    generator = torch.Generator().manual_seed(0)
    for layer in dictionaries.layers:
        own = dictionaries[layer]
        other = SAE.load_from_disk(str(SET / dictionaries.manifest["folders"][str(layer)]))
        # points like the stream: the mean plus a few features
        some = torch.randint(own.d_sae, (64, 8), generator=generator)
        x = own.b_dec + own.W_dec[some].sum(1) * own.b_dec.norm() / 4
        with torch.no_grad():
            f, g = own.encode(x), other.encode(x)
            torch.testing.assert_close(g, f, rtol=1e-5, atol=1e-5 * float(f.max()))
            size = float(x.abs().max())
            torch.testing.assert_close(other.decode(g), own.decode(f), rtol=1e-5, atol=1e-5 * size)


@pytest.mark.slow
def test_the_dictionaries_are_as_good_as_promised(model, dictionaries):
    """On few tokens here; the table in dictionaries/README.md is of more."""
    rows = evaluate(model, dictionaries, open_text(held_out=True), tokens=2000)
    assert [row["layer"] for row in rows] == list(range(13))
    for row in rows:
        assert row["d_sae"] >= 4096
        assert row["fvu"] <= 0.10
        assert row["ce_loss_score"] >= 0.95
        assert 31.5 <= row["l0"] <= 32
    assert dictionaries.manifest["tokens"] >= 3_000_000
    assert all(m["dead_share"] < 0.05 for m in dictionaries.manifest["metrics"].values())


def test_the_table_of_shipped_dictionaries_has_every_layer(dictionaries):
    text = (ROOT / "dictionaries" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \|", text, flags=re.MULTILINE)
    assert rows == [
        (str(layer), dictionaries.manifest["folders"][str(layer)]) for layer in dictionaries.layers
    ]


def test_the_index_and_the_concepts_belong_to_the_dictionaries(dictionaries):
    from saekit.concepts.catalogue import Catalogue
    from saekit.features.index.feature_index import FeatureIndex

    catalogue = Catalogue.load(SET / "concepts.json")
    assert catalogue.fingerprint == dictionaries.manifest["fingerprint"]
    for name, least in (("opposite", 0.95), ("large", 0.95), ("brackets", 0.95), ("small", 0.7)):
        best = catalogue.concept(name).best
        assert best.found and best.f1 >= least, name
        assert best.baseline_f1 < 0.5 * best.f1
    assert catalogue.concept("small").best.layer == 12
    with FeatureIndex.open(SET / "index.h5") as index:
        index.check_dictionaries(dictionaries)
        for token in ("large", " large"):
            best = index.by_token(token)[0]
            examples = index.feature(best.layer, best.feature).examples
            fired = [example.tokens[example.position] for example in examples]
            assert fired.count(best.token) > len(fired) / 2, (token, fired)


def test_the_seed_prompt_traces_to_small(model, dictionaries):
    from saekit import trace
    from saekit.concepts.catalogue import Catalogue

    catalogue = Catalogue.load(SET / "concepts.json")
    prompt = 'The opposite of "large" is "'
    circuit = trace(model, dictionaries, prompt, catalogue=catalogue, random_sets=100)
    places = {(concept.name, concept.position): concept.span for concept in circuit.concepts}
    assert set(places) >= {("opposite", 2), ("large", 5), ("brackets", 8), ("small", 8)}
    assert places["small", 8][1] == 12
    assert places["large", 5][0] == 0
    assert circuit.prediction[0].token == "small"
    assert (circuit.key, circuit.query) == (5, 8)
    assert circuit.target.layer == 12
    assert circuit.completeness_error <= 1e-4
    assert circuit.random_sets.share_below is not None
    assert circuit.random_sets.share_below >= 0.95
