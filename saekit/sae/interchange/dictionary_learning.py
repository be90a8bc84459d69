"""Folders of dictionary_learning (PyPI dictionary-learning 0.1).

One folder per dictionary with `config.json` (under "trainer": dict_class, layer, submodule_name,
lm_name, k, ...) and `ae.pt`, a pickled state dict.  Pickles can run code, so this one module reads
them with `torch.load(weights_only=True)` only, which admits tensors and plain containers.

Classes, with the names of their tensors beside ours (`.T`: stored transposed):

    AutoEncoderTopK, AutoEncoder, AutoEncoderNew, GatedAutoEncoder, BatchTopKSAE
        encoder.weight [d_sae, d_in] = W_enc.T, decoder.weight [d_in, d_sae] = W_dec.T
    JumpReluAutoEncoder, MatryoshkaBatchTopKSAE    W_enc, b_enc, W_dec, b_dec as in saekit

`BatchTopKSAE` and `MatryoshkaBatchTopKSAE` are used with their threshold, which is jumprelu.
`AutoEncoder` is read as its own loader reads it, with decoder rows scaled to norm 1.
`submodule_name` "resid_post_layer_5" is layer 6 of saekit; without such a name it is layer + 1.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.errors import FormatError, InputError
from saekit.files import atomic_path, read_json, write_json
from saekit.sae.dictionary import Dictionary
from saekit.sae.folding import fold_b_dec, fold_decoder_norm
from saekit.sae.interchange.sparsify import check_plain
from saekit.sae.storage.tensors import check_shapes

WEIGHTS = "ae.pt"
CONFIG = "config.json"
_RENAMED = {  # dict_class -> (its name, ours); weights of `nn.Linear` are transposed on the way
    "AutoEncoder": {"bias": "b_dec", "encoder.bias": "b_enc"},
    "AutoEncoderNew": {"decoder.bias": "b_dec", "encoder.bias": "b_enc"},
    "AutoEncoderTopK": {"b_dec": "b_dec", "encoder.bias": "b_enc"},
    "BatchTopKSAE": {"b_dec": "b_dec", "encoder.bias": "b_enc"},
    "GatedAutoEncoder": {
        "decoder_bias": "b_dec", "gate_bias": "b_gate", "r_mag": "r_mag", "mag_bias": "b_mag",
    },
    "JumpReluAutoEncoder": {"b_dec": "b_dec", "b_enc": "b_enc", "threshold": "threshold"},
    "MatryoshkaBatchTopKSAE": {"b_dec": "b_dec", "b_enc": "b_enc"},
}  # fmt: skip
_ARCHITECTURE = {
    "AutoEncoder": "standard", "AutoEncoderNew": "standard", "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu", "MatryoshkaBatchTopKSAE": "jumprelu",
    "JumpReluAutoEncoder": "jumprelu", "GatedAutoEncoder": "gated",
}  # fmt: skip
_TRAINED_AS = {"BatchTopKSAE": "batchtopk", "MatryoshkaBatchTopKSAE": "matryoshka_batchtopk"}
_NOT_LINEAR = ("JumpReluAutoEncoder", "MatryoshkaBatchTopKSAE")  # W_enc and W_dec as they are
_ONE_THRESHOLD = tuple(_TRAINED_AS)
_EXTRA = ("k", "threshold", "group_sizes")  # buffers that some versions store
_PLACE = re.compile(r"resid_(pre|post)_layer_(\d+)")


def place_name(layer: int) -> str:
    """dictionary_learning's name of a residual layer: `place_name(6) == "resid_post_layer_5"`."""
    return f"resid_post_layer_{layer - 1}" if layer else "resid_pre_layer_0"


def _layer(trainer: dict[str, Any], folder: Path) -> int:
    name = str(trainer.get("submodule_name") or "")
    match = _PLACE.fullmatch(name)
    if match:
        return int(match[2]) + (match[1] == "post")
    if name.startswith(("attn", "mlp")) or trainer.get("layer") is None:
        raise FormatError(
            f'{folder / CONFIG} names no residual layer (submodule_name "{name}", layer '
            f"{trainer.get('layer')}): saekit uses dictionaries of the residual stream."
        )
    return int(trainer["layer"]) + 1


def _load(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing.") from error
    except Exception as error:  # whatever can be wrong with a pickle, code in it included
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FormatError(f"{path} is not a file of tensors only ({reason}).") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise FormatError(f"{path} is not a state dict (names and tensors).")
    return state


def read_folder(folder: str | Path) -> Dictionary:
    """Read one dictionary_learning folder.

    Raises:
        FormatError: not such a folder, an unknown class, a place that is not the residual stream,
            or weights that do not fit.
    """
    folder = Path(folder)
    document = read_json(folder / CONFIG)
    trainer = document.get("trainer", {}) if isinstance(document, dict) else {}
    kind = trainer.get("dict_class")
    if kind not in _RENAMED:
        raise FormatError(
            f'{folder / CONFIG} names the class "{kind}"; saekit reads {", ".join(_RENAMED)}.'
        )
    state = _load(folder / WEIGHTS)
    linear = kind not in _NOT_LINEAR
    encoder, decoder = ("encoder.weight", "decoder.weight") if linear else ("W_enc", "W_dec")
    if encoder not in state or state[encoder].ndim != 2:
        raise FormatError(f"{folder / WEIGHTS} lacks {encoder}, which {kind} has.")
    shape = tuple(state[encoder].shape)
    d_sae, d_in = shape if linear else shape[::-1]
    extra = {
        name: state.pop(name) for name in _EXTRA if name in state and name not in _RENAMED[kind]
    }
    shapes = {
        encoder: shape,
        decoder: shape[::-1],
        **{n: (d_in,) if own == "b_dec" else (d_sae,) for n, own in _RENAMED[kind].items()},
    }
    check_shapes(state, shapes, folder / WEIGHTS)
    weights: dict[str, Any] = {own: state[n].float() for n, own in _RENAMED[kind].items()}
    for own, name in (("W_enc", encoder), ("W_dec", decoder)):
        weights[own] = (state[name].T if linear else state[name]).float().contiguous()
    if kind in _ONE_THRESHOLD:
        if "threshold" not in extra:
            raise FormatError(f"{folder / WEIGHTS} lacks threshold, which {kind} has.")
        weights["threshold"] = torch.full((d_sae,), float(extra["threshold"]))
    if kind == "AutoEncoderTopK":
        weights["k"] = int(extra["k"]) if "k" in extra else int(trainer.get("k") or 0)
        if weights["k"] < 1:
            raise FormatError(f"{folder} says nowhere how many features are active (k).")
    metadata = {
        "training_architecture": _TRAINED_AS.get(kind, _ARCHITECTURE[kind]),
        "model_name": trainer.get("lm_name"),
    }
    dictionary = Dictionary(
        layer=_layer(trainer, folder),
        architecture=_ARCHITECTURE[kind],
        apply_b_dec_to_input=kind not in ("AutoEncoderNew", "JumpReluAutoEncoder"),
        metadata={name: value for name, value in metadata.items() if value is not None},
        **{"b_enc": None, **weights},
    )
    return fold_decoder_norm(dictionary) if kind == "AutoEncoder" else dictionary


def write_folder(folder: str | Path, dictionary: Dictionary) -> None:
    """Write one dictionary_learning folder that its `load_dictionary` opens with equal outputs.

    "standard" becomes AutoEncoderNew: the loader of AutoEncoder would rescale the features.

    Raises:
        InputError: dictionary_learning cannot express the dictionary, or the disk is full.
    """
    check_plain(dictionary, "dictionary_learning")
    kinds = {"standard": "AutoEncoderNew", "topk": "AutoEncoderTopK", "gated": "GatedAutoEncoder",
             "jumprelu": "JumpReluAutoEncoder"}  # fmt: skip
    if dictionary.architecture not in kinds:
        raise InputError(
            f'The dictionary of layer {dictionary.layer} is "{dictionary.architecture}", which '
            "dictionary_learning does not have."
        )
    kind = kinds[dictionary.architecture]
    dictionary = fold_b_dec(dictionary, subtract=kind in ("AutoEncoderTopK", "GatedAutoEncoder"))
    state = {name: getattr(dictionary, own) for name, own in _RENAMED[kind].items()}
    if kind in _NOT_LINEAR:
        state |= {"W_enc": dictionary.W_enc, "W_dec": dictionary.W_dec}
    else:
        state |= {"encoder.weight": dictionary.W_enc.T, "decoder.weight": dictionary.W_dec.T}
    state = {name: tensor.detach().cpu().float().contiguous() for name, tensor in state.items()}
    if kind == "AutoEncoderTopK":  # no threshold was measured: -1 says so there
        state |= {"k": torch.tensor(dictionary.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    folder = Path(folder)
    with atomic_path(folder / WEIGHTS) as temporary:
        torch.save(state, temporary)
    trainer = {
        "trainer_class": "saekit",
        "dict_class": kind,
        "activation_dim": dictionary.d_in,
        "dict_size": dictionary.d_sae,
        "k": dictionary.k,
        "layer": max(0, dictionary.layer - 1),
        "submodule_name": place_name(dictionary.layer),
        "lm_name": dictionary.metadata.get("model_name"),
    }
    buffer = {
        "d_submodule": dictionary.d_in,
        "io": "out",
        "ctx_len": dictionary.metadata.get("context_size"),
    }
    write_json(folder / CONFIG, {"trainer": trainer, "buffer": buffer})
