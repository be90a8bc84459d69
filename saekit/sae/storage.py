"""Dictionaries on disk: one SAELens folder per layer, and the set of all layers with its manifest.

A folder is named by its hook point and holds `cfg.json`, `sae_weights.safetensors` and, for
trained dictionaries, `sparsity.safetensors`; `sae_lens.SAE.load_from_disk` opens it.  Matrices may
be stored in float16; `cfg.json` always says float32, into which every reader converts.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saekit.errors import FormatError, InputError, MismatchError
from saekit.files import atomic_path, read_json, write_json
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import BIASES, Dictionary
from saekit.sae.folding import fold_centring, fold_decoder_norm
from saekit.sae.manifest import MANIFEST, read_manifest, write_manifest
from saekit.sae.saelens_config import SAE_LENS_VERSION as SAE_LENS_VERSION
from saekit.sae.saelens_config import read_config, write_config

WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
CONFIG = "cfg.json"


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file atomically.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(whole, temporary, metadata=metadata)
        except SafetensorError as error:  # the writer's form of an OSError, a full disk included
            raise InputError(
                f"Cannot write {path} ({error}); free some space or choose another folder."
            ) from error


def load_tensors(path: str | Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, and its metadata.

    Raises:
        FormatError: missing, truncated, or not safetensors.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise FormatError(f"{path} is missing.") from error
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path} cannot be read ({error}); is it truncated?") from error


def save_dictionary(
    folder: str | Path, dictionary: Dictionary, dtype: torch.dtype = torch.float32
) -> None:
    """Write one SAELens folder; `dtype` is how the two matrices are stored."""
    folder = Path(folder)
    tensors = {"W_enc": dictionary.W_enc.to(dtype), "W_dec": dictionary.W_dec.to(dtype)}
    # vectors are small, and b_dec can exceed float16's range
    for name in ("b_dec", *BIASES[dictionary.architecture]):
        tensors[name] = getattr(dictionary, name).float()
    save_tensors(folder / WEIGHTS, tensors)
    if dictionary.log_sparsity is not None:
        save_tensors(folder / SPARSITY, {"sparsity": dictionary.log_sparsity})
    write_json(folder / CONFIG, write_config(dictionary))


def load_dictionary(folder: str | Path, device: str = "cpu") -> Dictionary:
    """Read one SAELens folder of a residual hook point, as float32.

    What the file leaves to be done at run time is folded into the weights where that is exact:
    `rescale_acts_by_decoder_norm`, and the centring of a stream whose writing weights were centred
    (metadata `model_from_pretrained_kwargs.center_writing_weights`).

    Raises:
        FormatError: a missing or broken file, an architecture or hook point that saekit does not
            use, weights of other names or shapes than the configuration says, or an activation
            scale left unfolded.
    """
    folder = Path(folder)
    config = read_config(read_json(folder / CONFIG), folder)
    tensors, _ = load_tensors(folder / WEIGHTS, device)
    if "scaling_factor" in tensors and torch.all(tensors["scaling_factor"] == 1):
        del tensors["scaling_factor"]  # SAELens wrote it for a while, and ignores it too
    check_shapes(tensors, config.shapes, folder / WEIGHTS)
    sparsity = None
    if (folder / SPARSITY).exists():
        sparsity = load_tensors(folder / SPARSITY, device)[0].get("sparsity")
    weights: dict[str, Any] = {name: tensor.float() for name, tensor in tensors.items()}
    dictionary = Dictionary(**{"b_enc": None, **weights}, **config.fields, log_sparsity=sparsity)
    if config.rescale:
        dictionary = fold_decoder_norm(dictionary)
    return fold_centring(dictionary) if config.centred else dictionary


def check_shapes(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], path: str | Path
) -> None:
    """Refuse weights that are not exactly those of `shapes`.

    Raises:
        FormatError: a missing or unknown tensor, or another shape.
    """
    for name, shape in shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "nothing"
        if found != shape:
            raise FormatError(f"{path}: {name} should be {shape} and is {found}.")
    unknown = sorted(set(tensors) - set(shapes))
    if unknown:
        raise FormatError(
            f"{path} holds a tensor {unknown[0]} that no dictionary of this architecture has."
        )


class DictionarySet:
    """The dictionaries of all layers of one run.

    Attributes:
        path: the folder it was read from or written to.
        manifest: see `saekit.sae.manifest`.

    Example:
        >>> dictionaries = DictionarySet.load("dictionaries/gpt2-mini")  # doctest: +SKIP
        >>> dictionaries[8].encode(x)  # doctest: +SKIP
    """

    def __init__(
        self, dictionaries: Mapping[int, Dictionary], manifest: dict[str, Any], path: Path
    ):
        self._dictionaries = dict(sorted(dictionaries.items()))
        self.manifest, self.path = manifest, path

    @property
    def name(self) -> str:
        """The folder's name, which is what results say (a path would be that of one machine)."""
        return self.path.resolve().name

    @property
    def layers(self) -> list[int]:
        """Layers that have a dictionary, ascending."""
        return list(self._dictionaries)

    def __getitem__(self, layer: int) -> Dictionary:
        if layer not in self._dictionaries:
            raise InputError(
                f"{self.path} has no dictionary for layer {layer}, only {self.layers}."
            )
        return self._dictionaries[layer]

    def __iter__(self) -> Iterator[Dictionary]:
        return iter(self._dictionaries.values())

    def __len__(self) -> int:
        return len(self._dictionaries)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "DictionarySet":
        """Read a set.

        Raises:
            FormatError: no set there, an unknown version, a missing or truncated file.
        """
        path = Path(path)
        manifest = read_manifest(path)
        dictionaries = {}
        for layer in manifest["layers"]:
            folder = manifest["folders"].get(str(layer))
            if folder is None or not (path / folder).is_dir():
                raise FormatError(f"{path} lacks the folder of layer {layer} ({folder}).")
            dictionary = load_dictionary(path / folder, device)
            if dictionary.layer != layer:
                raise FormatError(
                    f"{path / folder} holds layer {dictionary.layer}; the manifest says {layer}."
                )
            dictionaries[layer] = dictionary
        return cls(dictionaries, manifest, path)

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write all folders, then the manifest: a set without a manifest is not whole.

        Args:
            path: the set's folder.
            dtype: how matrices are stored; `torch.float16` halves the size.
        """
        path = Path(path)
        (path / MANIFEST).unlink(missing_ok=True)
        for layer, dictionary in self._dictionaries.items():
            save_dictionary(path / self.manifest["folders"][str(layer)], dictionary, dtype)
        write_manifest(path, self.manifest)
        self.manifest, self.path = read_manifest(path), path

    def check_model(self, model: LanguageModel) -> None:
        """Refuse a model other than the one the dictionaries were trained on.

        Raises:
            MismatchError: with both fingerprints.
        """
        own, other = self.manifest["fingerprint"], model.fingerprint
        if own != other:
            raise MismatchError(
                f'The dictionaries in {self.path} belong to model "{self.manifest["model"]}" with '
                f'fingerprint {own}; "{model.id}" has {other}.'
            )
