"""dictionary_learning folders: equations by hand, its own classes where installed, refusals."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from saekit.errors import FormatError, InputError
from saekit.sae.interchange.dictionary_learning import place_name, read_folder, write_folder
from tests.unit.sae.samples import random_dictionary

X = torch.randn(40, 8, generator=torch.Generator().manual_seed(5)) + 1
KINDS = ("standard", "topk", "jumprelu", "gated")
CLASSES = (
    "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "GatedAutoEncoder",
    "JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE",
)  # fmt: skip


def made_by_hand(folder, kind, **trainer):
    """`ae.pt` and `config.json` with random weights, as version 0.1 writes them."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    sizes = {
        "AutoEncoder": {"bias": 8, "encoder.bias": 24},
        "AutoEncoderNew": {"decoder.bias": 8, "encoder.bias": 24},
        "AutoEncoderTopK": {"b_dec": 8, "encoder.bias": 24},
        "BatchTopKSAE": {"b_dec": 8, "encoder.bias": 24},
        "GatedAutoEncoder": {"decoder_bias": 8, "r_mag": 24, "gate_bias": 24, "mag_bias": 24},
        "JumpReluAutoEncoder": {"b_dec": 8, "b_enc": 24, "threshold": 24},
        "MatryoshkaBatchTopKSAE": {"b_dec": 8, "b_enc": 24},
    }[kind]
    own_names = "b_enc" in sizes
    shapes = {"W_enc": (8, 24), "W_dec": (24, 8)} if own_names else {
        "encoder.weight": (24, 8), "decoder.weight": (8, 24),
    }  # fmt: skip
    state = {n: torch.randn(*s, generator=generator) for n, s in shapes.items()}
    state |= {n: torch.randn(size, generator=generator) for n, size in sizes.items()}
    if "TopK" in kind:
        state |= {"k": torch.tensor(4, dtype=torch.int), "threshold": torch.tensor(0.7)}
    if kind == "JumpReluAutoEncoder":
        state["threshold"].abs_()
    if kind == "MatryoshkaBatchTopKSAE":
        state["group_sizes"] = torch.tensor([8, 16])
    torch.save(state, folder / "ae.pt")
    trainer = {"dict_class": kind, "layer": 5, "lm_name": "gpt2", "submodule_name": None, **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    return state


def equations(kind, w, x):
    """(features, reconstruction) of each class, written from its own source in our words."""
    if kind in ("AutoEncoder", "AutoEncoderNew"):
        b_dec = w["bias"] if kind == "AutoEncoder" else w["decoder.bias"]
        shift = b_dec if kind == "AutoEncoder" else 0
        features = F.relu((x - shift) @ w["encoder.weight"].T + w["encoder.bias"])
        rebuilt = features @ w["decoder.weight"].T + b_dec
        if kind == "AutoEncoder":  # its loader rescales
            features = features * w["decoder.weight"].norm(dim=0)
        return features, rebuilt
    if kind == "GatedAutoEncoder":
        product = (x - w["decoder_bias"]) @ w["encoder.weight"].T
        gate = (product + w["gate_bias"]) > 0
        features = gate * F.relu(w["r_mag"].exp() * product + w["mag_bias"])
        return features, features @ w["decoder.weight"].T + w["decoder_bias"]
    if kind == "JumpReluAutoEncoder":
        pre = x @ w["W_enc"] + w["b_enc"]
        features = F.relu(pre * (pre > w["threshold"]))
        return features, features @ w["W_dec"] + w["b_dec"]
    if kind == "MatryoshkaBatchTopKSAE":
        acts = F.relu((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"])
        features = acts * (acts > w["threshold"])
        return features, features @ w["W_dec"] + w["b_dec"]
    acts = F.relu((x - w["b_dec"]) @ w["encoder.weight"].T + w["encoder.bias"])
    if kind == "AutoEncoderTopK":
        values, indices = acts.topk(4)
        features = torch.zeros_like(acts).scatter(1, indices, values)
    else:
        features = acts * (acts > w["threshold"])
    return features, features @ w["decoder.weight"].T + w["b_dec"]


@pytest.mark.parametrize("kind", CLASSES)
def test_reading_by_the_equations(tmp_path, kind):
    features, rebuilt = equations(kind, made_by_hand(tmp_path / "a", kind), X)
    dictionary = read_folder(tmp_path / "a")
    assert dictionary.layer == 6  # the output of block 5
    assert dictionary.metadata["model_name"] == "gpt2"
    # mutations tried: JumpReluAutoEncoder with b_dec subtracted; AutoEncoder not rescaled; layer 5
    assert torch.allclose(dictionary.encode(X), features, atol=1e-4)
    assert torch.allclose(dictionary.reconstruct(X), rebuilt, atol=1e-4)


def test_what_it_was_trained_as_is_kept(tmp_path):
    made_by_hand(tmp_path / "a", "BatchTopKSAE")
    assert read_folder(tmp_path / "a").training_architecture == "batchtopk"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("subtracts", [True, False])
def test_there_and_back(tmp_path, kind, subtracts):
    dictionary = random_dictionary(kind, layer=2, apply_b_dec_to_input=subtracts)
    write_folder(tmp_path / "a", dictionary)
    written = json.loads((tmp_path / "a/config.json").read_text())["trainer"]
    features, rebuilt = equations(
        written["dict_class"], torch.load(tmp_path / "a/ae.pt", weights_only=True), X
    )
    again = read_folder(tmp_path / "a")
    assert again.layer == 2
    assert again.architecture == kind
    for found, back in ((features, rebuilt), (again.encode(X), again.reconstruct(X))):
        assert torch.allclose(found, dictionary.encode(X), atol=1e-4)
        assert torch.allclose(back, dictionary.reconstruct(X), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_dictionary_learning_itself_opens_what_is_written(tmp_path, kind):
    utils = pytest.importorskip("dictionary_learning.utils", exc_type=ImportError)
    dictionary = random_dictionary(kind, layer=2)
    write_folder(tmp_path / "a", dictionary)
    with torch.no_grad():
        theirs, config = utils.load_dictionary(str(tmp_path / "a"), "cpu")
        features = theirs.encode(X)
        assert torch.allclose(dictionary.encode(X), features, atol=1e-5)
        assert torch.allclose(dictionary.reconstruct(X), theirs.decode(features), atol=1e-5)
    assert config["trainer"]["layer"] == 1


@pytest.mark.parametrize("kind", CLASSES)
def test_what_dictionary_learning_writes_is_read_with_equal_outputs(tmp_path, kind):
    utils = pytest.importorskip("dictionary_learning.utils", exc_type=ImportError)
    options = {"k": 4} if "TopK" in kind else {}
    if kind == "MatryoshkaBatchTopKSAE":
        options["group_sizes"] = [8, 16]
    torch.manual_seed(0)
    with torch.no_grad():
        theirs = getattr(utils, kind)(8, 24, **options)
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        if "TopK" in kind:
            theirs.threshold.fill_(0.2)
        (tmp_path / "a").mkdir()
        torch.save(theirs.state_dict(), tmp_path / "a/ae.pt")
        trainer = {"dict_class": kind, "layer": 0, "k": 4}
        (tmp_path / "a/config.json").write_text(json.dumps({"trainer": trainer}))
        theirs, _ = utils.load_dictionary(str(tmp_path / "a"), "cpu")
        own, features = read_folder(tmp_path / "a"), theirs.encode(X)
        assert features.count_nonzero() > 0
        assert torch.allclose(own.encode(X), features, atol=1e-5)
        assert torch.allclose(own.reconstruct(X), theirs.decode(features), atol=1e-5)


def test_places(tmp_path):
    assert [place_name(layer) for layer in (0, 1)] == ["resid_pre_layer_0", "resid_post_layer_0"]
    for layer in (0, 1, 12):
        write_folder(tmp_path / str(layer), random_dictionary("topk", layer=layer))
        assert read_folder(tmp_path / str(layer)).layer == layer
    made_by_hand(tmp_path / "mlp", "AutoEncoder", submodule_name="mlp_layer_3")
    with pytest.raises(FormatError, match='names no residual layer .submodule_name "mlp_layer_3"'):
        read_folder(tmp_path / "mlp")


def test_a_pickle_with_code_is_not_run(tmp_path):
    made_by_hand(tmp_path / "a", "AutoEncoder")
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return type(marker).touch, (marker,)

    torch.save({"encoder.weight": Attack()}, tmp_path / "a/ae.pt")
    # mutation tried: weights_only=False
    with pytest.raises(FormatError, match="is not a file of tensors only"):
        read_folder(tmp_path / "a")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("decoder.weight"), "decoder.weight should be .* is nothing"),
        (lambda state: state.pop("encoder.weight"), "lacks encoder.weight"),
        (lambda state: state.update(b_dec=torch.zeros(9)), r"b_dec should be \(8,\) and is \(9,\)"),
        (lambda state: state.update(other=torch.zeros(9)), "holds a tensor other"),
        (lambda state: state.pop("threshold"), "lacks threshold"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, damage, message):
    state = made_by_hand(tmp_path / "a", "BatchTopKSAE")
    damage(state)
    torch.save(state, tmp_path / "a/ae.pt")
    with pytest.raises(FormatError, match=message) as caught:
        read_folder(tmp_path / "a")
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    made_by_hand(tmp_path / "a", "AutoEncoder", dict_class="IdentityDict")
    with pytest.raises(FormatError, match='the class "IdentityDict"; saekit reads AutoEncoder'):
        read_folder(tmp_path / "a")
    made_by_hand(tmp_path / "b", "AutoEncoder")
    (tmp_path / "b/ae.pt").write_bytes(b"no pickle")
    with pytest.raises(FormatError, match="is not a file of tensors only"):
        read_folder(tmp_path / "b")
    torch.save([1, 2], tmp_path / "b/ae.pt")
    with pytest.raises(FormatError, match="is not a state dict"):
        read_folder(tmp_path / "b")
    (tmp_path / "b/ae.pt").unlink()
    with pytest.raises(FormatError, match="is missing"):
        read_folder(tmp_path / "b")


def test_what_it_cannot_say_is_not_written(tmp_path):
    abstopk = random_dictionary("abstopk")
    with pytest.raises(InputError, match='"abstopk", which dictionary_learning does not have'):
        write_folder(tmp_path / "a", abstopk)
    with pytest.raises(InputError, match="normalises each token"):
        write_folder(
            tmp_path / "a", replace(random_dictionary("topk"), normalize_activations="layer_norm")
        )
