"""Folders of EleutherAI's sparsify (PyPI eai-sparsify 1.3).

One folder per module of the Hugging Face model, with `cfg.json` (activation, k, num_latents,
expansion_factor, transcode, skip_connection, d_in, ...) and `sae.safetensors`:

    encoder.weight [d_sae, d_in], encoder.bias [d_sae], W_dec [d_sae, d_in], b_dec [d_in]

Its equations are those of "topk": the k largest of relu((x - b_dec) @ encoder.weight' +
encoder.bias), times W_dec, plus b_dec.  The module `h.5` stands for its output, which is layer 6
of saekit; `drop` (the sum of both embeddings) is layer 0.
"""

import re
from pathlib import Path

from torch import Tensor

from saekit.errors import FormatError, InputError
from saekit.files import read_json, write_json
from saekit.sae.dictionary import Dictionary
from saekit.sae.folding import fold_b_dec
from saekit.sae.storage.tensors import check_shapes, load_tensors, save_tensors

WEIGHTS = "sae.safetensors"
CONFIG = "cfg.json"
_BLOCK = re.compile(r"(?:transformer\.|model\.)?(?:h|layers|blocks)\.(\d+)")


def module_name(layer: int) -> str:
    """The module of a Hugging Face GPT-2 whose output is a residual layer."""
    return f"h.{layer - 1}" if layer else "drop"


def layer_of_module(name: str) -> int:
    """Inverse of `module_name`: `layer_of_module("transformer.h.5") == 6`.

    Raises:
        FormatError: a module whose output is not the residual stream.
    """
    match = _BLOCK.fullmatch(name)
    if match:
        return int(match[1]) + 1
    if name in ("drop", "transformer.drop"):
        return 0
    raise FormatError(
        f'"{name}" is not a block of a model (such as h.5): saekit uses dictionaries of the '
        "residual stream."
    )


def read_folder(folder: str | Path) -> Dictionary:
    """Read one sparsify folder.

    Raises:
        FormatError: not such a folder, a transcoder, a skip connection or "groupmax", a module
            that is not a block, or weights that do not fit.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    for key, usable in (("transcode", False), ("skip_connection", False), ("activation", "topk")):
        if config.get(key, usable) != usable:
            raise FormatError(
                f"{folder} has {key} {config[key]}: saekit reads autoencoders of the residual "
                "stream with topk from sparsify."
            )
    try:
        d_in, k = int(config["d_in"]), int(config["k"])
        d_sae = int(config.get("num_latents") or d_in * int(config["expansion_factor"]))
    except KeyError as error:
        raise FormatError(f"{folder / CONFIG} lacks {error}.") from error
    tensors, _ = load_tensors(folder / WEIGHTS)
    shapes = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
        "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    check_shapes(tensors, shapes, folder / WEIGHTS)
    layer = layer_of_module(folder.name)
    return Dictionary(
        layer=layer,
        architecture="topk",
        k=k,
        W_enc=tensors["encoder.weight"].float().T.contiguous(),
        b_enc=tensors["encoder.bias"].float(),
        W_dec=tensors["W_dec"].float(),
        b_dec=tensors["b_dec"].float(),
        metadata={"training_architecture": "topk", "hf_hook_name": folder.name},
    )


def write_folder(folder: str | Path, dictionary: Dictionary) -> None:
    """Write one sparsify folder (its name should be that of `module_name`).

    Raises:
        InputError: sparsify cannot express the dictionary, or the disk is full.
    """
    check_plain(dictionary, "sparsify")
    if dictionary.architecture != "topk":
        raise InputError(
            f'The dictionary of layer {dictionary.layer} is "{dictionary.architecture}"; sparsify '
            "has topk only: export it for dictionary_learning."
        )
    dictionary = fold_b_dec(dictionary, subtract=True)
    assert dictionary.b_enc is not None
    tensors: dict[str, Tensor] = {
        "encoder.weight": dictionary.W_enc.T,
        "encoder.bias": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    folder = Path(folder)
    save_tensors(folder / WEIGHTS, {name: tensor.float() for name, tensor in tensors.items()})
    config = {
        "activation": "topk",
        "expansion_factor": dictionary.d_sae // dictionary.d_in,
        "normalize_decoder": True,
        "num_latents": dictionary.d_sae,
        "k": dictionary.k,
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": dictionary.d_in,
    }
    write_json(folder / CONFIG, config)


def check_plain(dictionary: Dictionary, library: str) -> None:
    """Refuse a dictionary that does something to each token which other libraries cannot say.

    Raises:
        InputError: which of the two it is.
    """
    if dictionary.normalize_activations != "none":
        raise InputError(
            f"The dictionary of layer {dictionary.layer} normalises each token "
            f'("{dictionary.normalize_activations}"), which files of {library} cannot say.'
        )
    if dictionary.centre_input:
        raise InputError(
            f"The dictionary of layer {dictionary.layer} reconstructs a stream without its mean, "
            f"which files of {library} cannot say."
        )
