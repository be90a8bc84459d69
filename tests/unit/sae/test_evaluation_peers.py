"""saekit's figures against SAELens' own `run_evals`, on the same dictionaries and tokens."""

from itertools import islice

import pytest
import torch

from saekit.activations import context_rows, residuals
from saekit.coordinates import hook_name
from saekit.sae.evaluation import density_histogram, evaluate
from saekit.sae.storage.dictionary_set import DictionarySet, save_dictionary
from saekit.sae.training.config import TrainConfig
from saekit.sae.training.trainer import train
from saekit.text import relational
from tests.unit.sae.samples import KINDS, hooked, random_dictionary

CONTEXT, ROWS = 32, 16
SHARED = (
    "l0", "l1", "explained_variance", "explained_variance_legacy", "mse", "cossim", "l2_norm_in",
    "l2_norm_out", "l2_ratio", "relative_reconstruction_bias", "ce_loss_score",
    "ce_loss_with_ablation", "ce_loss_with_sae", "ce_loss_without_sae", "kl_div_score",
    "kl_div_with_ablation", "kl_div_with_sae",
)  # fmt: skip


@pytest.fixture(scope="module")
def documents():
    return list(islice(relational.documents(seed=3), 120))


@pytest.fixture(scope="module")
def ids(tiny_model, documents):
    rows = islice(context_rows(tiny_model, documents, CONTEXT), ROWS)
    return torch.stack([torch.from_numpy(row) for row in rows]).long()


@pytest.fixture(scope="module")
def lens(tiny_model):
    return hooked(tiny_model, centred=False)


def of_saelens(sae, lens, ids):
    """All scalar metrics of `run_evals` and the firing rates, on exactly these tokens."""
    from sae_lens.evals import get_eval_everything_config, run_evals
    from sae_lens.training.activation_scaler import ActivationScaler

    class Store:
        context_size = ids.shape[1]
        store_batch_size_prompts = len(ids)

        def get_batch_tokens(self, batch_size):
            return ids

        def reset_input_dataset(self):
            pass

    config = get_eval_everything_config(len(ids), 1, 1)
    groups, features = run_evals(
        sae, Store(), lens, ActivationScaler(), config, exclude_special_tokens=False
    )
    flat = {name: value for group in groups.values() for name, value in group.items()}
    return flat, torch.tensor(features["feature_density"])


def compare(found, theirs, density):
    for name in SHARED:
        assert found[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), name
    assert found["density_histogram"] == density_histogram(density)
    assert found["dead_share"] == pytest.approx((density == 0).double().mean().item())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layer", [1, 3])
def test_every_shared_metric_agrees(tmp_path, tiny_model, documents, ids, lens, kind, layer):
    """Mutations tried: KL without the last position; BOS left in the ablation; legacy variance
    about zero; l1 without the absolute value (abstopk)."""
    from sae_lens import SAE

    x = residuals(tiny_model, ids, [layer])[0]
    dictionary = random_dictionary(kind, layer=layer, d_in=32, d_sae=96)
    dictionary.W_enc.div_(x.std())
    dictionary.W_dec.mul_(x.std() / 8)
    metadata = {"hook_name": hook_name(layer, tiny_model.n_layers)}
    dictionary.metadata.update(metadata)
    save_dictionary(tmp_path, dictionary)
    theirs, density = of_saelens(SAE.load_from_disk(tmp_path), lens, ids)
    found = evaluate(tiny_model, [dictionary], documents, ids.numel(), CONTEXT, include_bos=True)
    assert found[0]["tokens"] == ids.numel()
    compare(found[0], theirs, density)


def test_trained_saved_opened_in_saelens_and_evaluated_there(
    tmp_path, tiny_model, documents, ids, lens
):
    from sae_lens import SAE

    config = TrainConfig(
        d_sae=64, k=4, tokens=4096, batch_tokens=256, context=CONTEXT, buffer_tokens=1024
    )
    train(tiny_model, documents, config, out=tmp_path / "set")
    trained = DictionarySet.load(tmp_path / "set")
    own = evaluate(tiny_model, trained, documents, ids.numel(), CONTEXT, include_bos=True)
    for found in own[1:3]:
        folder = tmp_path / "set" / trained.manifest["folders"][str(found["layer"])]
        compare(found, *of_saelens(SAE.load_from_disk(folder), lens, ids))
