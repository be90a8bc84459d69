"""What is written about a training beside the weights: SAELens metadata and the manifest."""

from collections.abc import Mapping
from typing import Any

from saekit.coordinates import hook_name
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import SAE_LENS_VERSION
from saekit.sae.training.config import TrainConfig


def saelens_metadata(model: LanguageModel, layer: int, config: TrainConfig) -> dict[str, Any]:
    """The `metadata` of a layer's `cfg.json`, with which SAELens finds model and hook point."""
    return {
        "sae_lens_version": SAE_LENS_VERSION,
        "model_name": model.id,
        "hook_name": hook_name(layer, model.n_layers),
        "hook_head_index": None,
        "context_size": config.context,
        "prepend_bos": model.prepend_bos,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {"fold_ln": False, "center_writing_weights": False},
        "exclude_special_tokens": [model.bos],
        "model_fingerprint": model.fingerprint,
    }


def manifest_of(
    model: LanguageModel,
    config: TrainConfig,
    folders: Mapping[int, str],
    metrics: Mapping[int, Mapping[str, float]],
    text_name: str,
) -> dict[str, Any]:
    """The manifest of a trained set (keys: see `saekit.sae.storage.manifest`).

    Args:
        model: the model.
        config: of the training.
        folders: folder names by layer, ascending.
        metrics: figures of the last steps by layer.
        text_name: what the text was, in words.
    """
    layers = list(folders)
    own = {layer: vars(config.at(layer)) for layer in layers}
    differing = {
        str(layer): {name: value for name, value in settings.items() if value != vars(config)[name]}
        for layer, settings in own.items()
    }
    return {
        "model": model.id,
        "fingerprint": model.fingerprint,
        "weights": "unprocessed",
        "prepend_bos": model.prepend_bos,
        "layers": layers,
        "folders": {str(layer): folder for layer, folder in folders.items()},
        "architecture": config.architecture,
        "d_in": model.d_model,
        "d_sae": config.d_sae,
        "k": config.k,
        "per_layer": {layer: settings for layer, settings in differing.items() if settings},
        "training": config.to_dict(),
        "text": text_name,
        "tokens": config.steps * config.batch_tokens,
        "seed": config.seed,
        "metrics": {str(layer): dict(metrics[layer]) for layer in layers},
    }
