"""Dictionaries on disk: one SAELens folder per layer, and the set of all layers with its manifest.

A folder is named by its hook point and holds `cfg.json`, `sae_weights.safetensors` and, for
trained dictionaries, `sparsity.safetensors`; `sae_lens.SAE.load_from_disk` opens it.  Matrices may
be stored in float16; `cfg.json` always says float32, into which every reader converts.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saekit.errors import FormatError, InputError, MismatchError
from saekit.files import read_json, write_json
from saekit.model.devices import check_device
from saekit.model.loading import LanguageModel
from saekit.sae.dictionary import BIASES, Dictionary
from saekit.sae.folding import fold_centring, fold_decoder_norm
from saekit.sae.storage.cfg import SAE_LENS_VERSION as SAE_LENS_VERSION
from saekit.sae.storage.cfg import read_config, write_config
from saekit.sae.storage.manifest import MANIFEST, read_manifest, write_manifest
from saekit.sae.storage.tensors import check_shapes, load_tensors, save_tensors

WEIGHTS = "sae_weights.safetensors"
SPARSITY = "sparsity.safetensors"
CONFIG = "cfg.json"


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
            use, weights of other names or shapes than the configuration says or that are not
            finite, or an activation scale left unfolded.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    tensors, _ = load_tensors(folder / WEIGHTS, device)
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor.sum(dtype=torch.float64)):
            raise FormatError(f"{folder / WEIGHTS}: {name} has values that are not finite.")
    sparsity = None
    if (folder / SPARSITY).exists():
        sparsity = load_tensors(folder / SPARSITY, device)[0].get("sparsity")
    return dictionary_of(config, tensors, folder, sparsity)


def dictionary_of(
    config: dict[str, Any], tensors: dict[str, Tensor], where: Path, sparsity: Tensor | None = None
) -> Dictionary:
    """A dictionary from the content of `cfg.json` and the weights (see `load_dictionary`).

    Args:
        config, tensors: SAELens' configuration and state dict.
        where: names the source in errors; its last part is the hook point if `config` has none.
        sparsity: log10 of the firing rates, if known.
    """
    understood = read_config(config, where)
    if "scaling_factor" in tensors and torch.all(tensors["scaling_factor"] == 1):
        del tensors["scaling_factor"]  # SAELens wrote it for a while, and ignores it too
    check_shapes(tensors, understood.shapes, where)
    weights: dict[str, Any] = {name: tensor.float() for name, tensor in tensors.items()}
    dictionary = Dictionary(**{"b_enc": None, **weights}, **understood.fields)
    if understood.rescale:
        dictionary = fold_decoder_norm(dictionary)
    if understood.centred:
        dictionary = fold_centring(dictionary)
    return replace(dictionary, log_sparsity=sparsity)


NONE = "none"  # the name of a set without a dictionary


class DictionarySet:
    """The dictionaries of all layers of one run.

    Attributes:
        path: the folder it was read from or written to.
        manifest: see `saekit.sae.storage.manifest`.

    Example:
        >>> dictionaries = DictionarySet.load("dictionaries/gpt2-mini")
        >>> x = torch.zeros(2, dictionaries[8].d_in)
        >>> dictionaries[8].encode(x).shape
        torch.Size([2, 4096])
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
        if not self._dictionaries:
            raise InputError(
                f"There are no dictionaries of {self.manifest['model']}: train them with "
                "saekit train, or ask for a token."
            )
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
    def none(cls, model: LanguageModel) -> "DictionarySet":
        """A set without a dictionary, for what works without: heads and routes of tokens."""
        manifest = {
            "model": model.id, "fingerprint": model.fingerprint, "prepend_bos": model.prepend_bos,
            "layers": [],
        }  # fmt: skip
        return cls({}, manifest, Path(NONE))

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "DictionarySet":
        """Read a set.

        Raises:
            FormatError: no set there, an unknown version, a missing or truncated file.
            InputError: no such device.
        """
        check_device(device)
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

        Sets that were imported where their model could not be loaded have no fingerprint; of them
        only the width and the layers are compared.

        Raises:
            MismatchError: with both fingerprints, widths or numbers of layers.
        """
        own = self.manifest["fingerprint"]
        if own is None:
            check_fit(self, model)
        else:
            what = f"The dictionaries in {self.path} belong"
            model.check_made_with(what, self.manifest["model"], own)


def check_fit(dictionaries: Iterable[Dictionary], model: LanguageModel) -> None:
    """Refuse dictionaries that cannot be of this model.

    Raises:
        MismatchError: a dictionary of another width, or of a layer that the model does not have.
    """
    for dictionary in dictionaries:
        if dictionary.d_in != model.d_model:
            raise MismatchError(
                f"The dictionary of layer {dictionary.layer} reads {dictionary.d_in} dimensions; "
                f'the stream of "{model.id}" has {model.d_model}.'
            )
        if dictionary.layer > model.n_layers:
            raise MismatchError(
                f'There is a dictionary of layer {dictionary.layer}; "{model.id}" has layers 0 to '
                f"{model.n_layers}."
            )
