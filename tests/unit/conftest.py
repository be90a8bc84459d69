"""A tiny model of which it is known what its features must fire on, and an index of it."""

import copy
from itertools import islice

import pytest

LARGE, SPACE_LARGE = 3, 5  # features of layer 0 that fire on "large" and on " large" only


@pytest.fixture(scope="session")
def plain_model(tiny_model):
    """`tiny_model` without position embeddings: layer 0 is the token embedding itself."""
    import torch

    from saekit.model.loading import LanguageModel

    hf = copy.deepcopy(tiny_model.hf)
    with torch.no_grad():
        hf.transformer.wpe.weight.zero_()
    return LanguageModel("plain", hf, tiny_model.tokenizer)


@pytest.fixture(scope="session")
def make_set(plain_model, tmp_path_factory):
    """A function: seed -> saved dictionaries of layers 0 (jumprelu, planted), 2 and 3 (topk)."""
    import torch

    from saekit.coordinates import hook_name
    from saekit.sae.dictionary import Dictionary
    from saekit.sae.storage.dictionary_set import DictionarySet

    d_sae, d_in = 70, plain_model.d_model  # more features than one chunk of the file

    def make(seed, **changes):
        torch.manual_seed(seed)

        def random_dictionary(layer, **kind):
            W_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_in), dim=-1)
            W_enc = 0.3 * torch.randn(d_in, d_sae)
            b_enc, b_dec = 0.1 * torch.randn(d_sae), 0.1 * torch.randn(d_in)
            return Dictionary(layer, W_enc=W_enc, b_enc=b_enc, W_dec=W_dec, b_dec=b_dec, **kind)

        threshold = torch.full((d_sae,), 0.8)
        planted = random_dictionary(0, architecture="jumprelu", threshold=threshold)
        for feature, text in ((LARGE, "large"), (SPACE_LARGE, " large")):
            e = plain_model.hf.transformer.wte.weight[plain_model.single_token(text)].detach()
            planted.W_enc[:, feature] = e / e.square().sum()
            planted.b_enc[feature] = (planted.b_dec @ planted.W_enc)[feature]  # e gives 1 exactly
        parts = {0: planted, **{n: random_dictionary(n, architecture="topk", k=4) for n in (2, 3)}}
        manifest = {
            "model": plain_model.id, "fingerprint": plain_model.fingerprint, "prepend_bos": True,
            "layers": [0, 2, 3], "folders": {str(n): hook_name(n, 3) for n in parts},
            "d_sae": d_sae, **changes,
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("dictionaries")
        DictionarySet(parts, manifest, folder).save(folder)
        return DictionarySet.load(folder)

    return make


@pytest.fixture(scope="session")
def dictionaries(make_set):
    return make_set(0)


@pytest.fixture(scope="session")
def documents():
    """Finite text with both forms of "large"."""
    from saekit.text import relational

    found = list(islice(relational.documents(seed=3), 120))
    return [text + ' A large "large" sign.' * (n % 3 == 0) for n, text in enumerate(found)]


@pytest.fixture(scope="session")
def index(plain_model, dictionaries, documents):
    from saekit.features.index.build import build_index
    from saekit.features.index.feature_index import FeatureIndex

    path = dictionaries.path / "index.h5"
    build_index(plain_model, dictionaries, documents, path, tokens=2500, context=40, examples=4)
    with FeatureIndex.open(dictionaries.path) as opened:
        yield opened


@pytest.fixture(scope="session")
def live_feature(index):
    """A feature of layer 2 that fires on some positions but not on most."""
    densities = index.densities(2)
    return int(next(f for f in densities.argsort()[::-1] if densities[f] < 0.4))
