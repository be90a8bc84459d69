"""`cfg.json` of a SAELens folder: what saekit writes, and what it understands of what it reads.

Keys of SAELens: architecture, d_in, d_sae, dtype, device, apply_b_dec_to_input,
normalize_activations, reshape_activations, k and rescale_acts_by_decoder_norm (topk, abstopk),
metadata.  saekit adds `centre_input` where it is true (SAELens drops keys that it does not know).
Files of SAELens before 6.0 have no metadata: everything is at the top level, some under other
names.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from saekit.coordinates import layer_of_hook
from saekit.errors import FormatError, InputError
from saekit.sae.dictionary import BIASES, NORMALISATIONS, STORED_KINDS, WITH_K, Dictionary

SAE_LENS_VERSION = "6.54.12"  # the version whose format is written
_UNFOLDED = {  # normalisations that SAELens folds when a training ends, and why not here
    "expected_average_only_in": "the average norm is not in the file",
    "covariance_whitening": "the whitening is not in the file",
}
_METADATA = (  # what files before 6.0 have at the top level
    "model_name", "hook_name", "hook_head_index", "prepend_bos", "context_size", "dataset_path",
    "seqpos_slice", "exclude_special_tokens", "model_from_pretrained_kwargs", "neuronpedia_id",
    "sae_lens_training_version",
)  # fmt: skip


@dataclass(frozen=True)
class FolderConfig:
    """What a `cfg.json` says about the weights beside it.

    Attributes:
        rescale: fold the decoder norms into the encoder ("topk" trained as if rows had norm 1).
        centred: trained on a centred stream, and the weights as trained: fold the centring.
        fields: arguments of `Dictionary` that are no tensors.
        shapes: name -> shape of every tensor.
    """

    rescale: bool
    centred: bool
    fields: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]


def write_config(dictionary: Dictionary) -> dict[str, Any]:
    """The content of `cfg.json`; every reader converts the weights into the float32 it says."""
    config: dict[str, Any] = {
        "architecture": dictionary.architecture,
        "d_in": dictionary.d_in,
        "d_sae": dictionary.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": dictionary.apply_b_dec_to_input,
        "normalize_activations": dictionary.normalize_activations,
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION, **dictionary.metadata},
    }
    if dictionary.architecture in WITH_K:
        config |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    if dictionary.centre_input:
        config["centre_input"] = True
    return config


def read_config(config: dict[str, Any], folder: Path) -> FolderConfig:
    """Understand a `cfg.json`; `folder` names it in errors, and its hook point if it does not.

    Raises:
        FormatError: an architecture or hook point that saekit does not use, a missing key, or a
            normalisation that should have been folded.
    """
    if "metadata" not in config:
        config = _modern(config)
    metadata = config["metadata"]
    architecture = config.get("architecture", "none")
    if architecture not in STORED_KINDS:
        raise FormatError(
            f'{folder} holds a dictionary of architecture "{architecture}"; '
            f"saekit reads {', '.join(STORED_KINDS)}."
        )
    normalisation = config.get("normalize_activations") or "none"
    if normalisation not in NORMALISATIONS:
        reason = _UNFOLDED.get(normalisation, "saekit does not know it")
        raise FormatError(
            f'{folder} expects activations normalised by "{normalisation}" and {reason}: '
            "fold the normalisation into the weights with SAELens first."
        )
    if (config.get("reshape_activations") or "none") != "none":
        raise FormatError(f"{folder} reads attention heads (hook_z), not the residual stream.")
    hook = metadata.get("hook_name") or folder.name
    try:
        layer = layer_of_hook(hook)
        d_in, d_sae = int(config["d_in"]), int(config["d_sae"])
        k = int(config["k"]) if architecture in WITH_K else None
    except InputError as error:
        raise FormatError(
            f'{folder} belongs to the hook point "{hook}"; saekit uses dictionaries of the '
            "residual stream (hook_resid_pre, hook_resid_post)."
        ) from error
    except KeyError as error:
        raise FormatError(f"{folder / 'cfg.json'} lacks {error}.") from error
    loading = metadata.get("model_from_pretrained_kwargs") or {}
    already_folded = "centre_input" in config
    return FolderConfig(
        rescale=bool(config.get("rescale_acts_by_decoder_norm")) and architecture in WITH_K,
        centred=not already_folded and bool(loading.get("center_writing_weights")),
        fields={
            "layer": layer,
            "architecture": architecture,
            "k": k,
            "apply_b_dec_to_input": bool(config.get("apply_b_dec_to_input", True)),
            "centre_input": bool(config.get("centre_input", False)),
            "normalize_activations": normalisation,
            "metadata": metadata,
        },
        shapes={
            "W_enc": (d_in, d_sae),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
            **{name: (d_sae,) for name in BIASES[architecture]},
        },
    )


def _modern(config: dict[str, Any]) -> dict[str, Any]:
    """A `cfg.json` from before SAELens 6.0 in today's form."""
    old = dict(config)
    for before, now in (
        ("hook_point", "hook_name"),
        ("hook_point_head_index", "hook_head_index"),
        ("activation_fn_str", "activation_fn"),
    ):
        if before in old:
            old.setdefault(now, old[before])
    new = {"architecture": "standard", **old}
    k = (old.get("activation_fn_kwargs") or {}).get("k")
    if old.get("activation_fn") == "topk" and k is not None:
        new |= {"architecture": "topk", "k": k}
    if isinstance(old.get("normalize_activations"), bool):
        new["normalize_activations"] = (
            "expected_average_only_in" if old["normalize_activations"] else "none"
        )
    if "hook_z" in str(old.get("hook_name")):
        new["reshape_activations"] = "hook_z"
    return {**new, "metadata": {name: old[name] for name in _METADATA if name in old}}
