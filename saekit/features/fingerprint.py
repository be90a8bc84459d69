"""A fingerprint of a dictionary that can be taken without torch, so a foreign index is refused.

SHA-256 over float32 values of b_enc (gated: b_gate), b_dec and the first rows of W_enc: any other
training run differs in all of them, and reading them takes milliseconds where all weights would
take seconds.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open

from saekit.errors import FormatError, MismatchError

if TYPE_CHECKING:
    from saekit.sae.dictionary import Dictionary

ROWS = 4
WEIGHTS = "sae_weights.safetensors"


def weights_fingerprint(
    W_enc: Float[np.ndarray, "row d_sae"],
    b_enc: Float[np.ndarray, " d_sae"],
    b_dec: Float[np.ndarray, " d_in"],
) -> str:
    """Fingerprint of weights in memory (at least the first rows of `W_enc`)."""
    digest = hashlib.sha256()
    for array in (b_enc, b_dec, W_enc[:ROWS]):
        digest.update(np.ascontiguousarray(array, dtype=np.float32).tobytes())
    return digest.hexdigest()


def folder_fingerprint(folder: str | Path) -> str | None:
    """Fingerprint of a SAELens folder; None where the weights are in a type numpy lacks (bf16).

    Raises:
        FormatError: the weights are missing or broken.
    """
    path = Path(folder) / WEIGHTS
    try:
        with safe_open(path, framework="numpy") as file:
            bias = "b_enc" if "b_enc" in file.keys() else "b_gate"  # noqa: SIM118
            slices = [file.get_slice(name) for name in ("W_enc", bias, "b_dec")]
            if any(part.get_dtype() not in ("F16", "F32", "F64") for part in slices):
                return None
            W_enc, b_enc, b_dec = slices
            return weights_fingerprint(W_enc[:ROWS], b_enc[:], b_dec[:])
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} cannot be read ({error}); is it missing or cut?") from error


def dictionary_fingerprint(dictionary: "Dictionary") -> str:
    """Fingerprint of loaded weights."""
    arrays = (dictionary.W_enc[:ROWS], dictionary.bias, dictionary.b_dec)
    W_enc, b_enc, b_dec = (tensor.detach().float().cpu().numpy() for tensor in arrays)
    return weights_fingerprint(W_enc, b_enc, b_dec)


def check_dictionaries(
    what: str,
    made_from: tuple[Sequence[int], Sequence[str]],
    found: Mapping[int, str | None],
    where: str,
    cure: str,
) -> None:
    """Refuse what was made from other dictionaries.

    Args:
        what: such as "The index".
        made_from: its layers and the fingerprints of their dictionaries.
        found: the fingerprint of every layer that is there; None is not compared.
        where: where those are.
        cure: what to do, a sentence.

    Raises:
        MismatchError: the first layer that differs or is missing.
    """
    for layer, own in zip(*made_from, strict=True):
        other = found.get(layer, "none")
        if other is not None and other != own:
            raise MismatchError(
                f"{what} was made from other dictionaries than those in {where}: layer {layer} is "
                f"{own[:12]} in the one and {other[:12]} in the other. {cure}"
            )
