"""SAELens releases on the hub, through `sae_lens` itself (imported when it is needed).

SAELens folders on disk need none of this: they are saekit's own form (sae/storage/).
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HfHubHTTPError
from tqdm.auto import tqdm

from saekit.errors import FormatError, InputError
from saekit.sae.dictionary import Dictionary
from saekit.sae.storage.dictionary_set import dictionary_of


def _sae_lens() -> tuple[Any, Any]:
    """`sae_lens.SAE` and the table of its releases."""
    try:
        from sae_lens import SAE
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory
    except ImportError as error:
        raise InputError(
            "SAELens releases are read with sae_lens, which is not installed: "
            "pip install sae-lens, or download the folders and import those."
        ) from error
    return SAE, get_pretrained_saes_directory


def release_ids(release: str) -> list[str]:
    """The ids of all dictionaries in a SAELens release such as "gpt2-small-res-jb".

    Raises:
        InputError: sae_lens is not installed, or knows no such release.
    """
    _, directory = _sae_lens()
    releases = directory()
    if release not in releases:
        raise InputError(
            f'"{release}" is neither a folder nor a SAELens release; a repository of the hub '
            "needs the ids of its dictionaries (--id) as well."
        )
    return list(releases[release].saes_map)


def read_release(release: str, ids: Sequence[str] | None = None) -> Iterator[Dictionary]:
    """The dictionaries of a release, folded into saekit's form.

    Args:
        release: a name in SAELens' table, or a repository of the hub.
        ids: which of them; None for all that the table lists.

    Raises:
        InputError: sae_lens is missing, no such release or id, or the hub cannot be reached.
        FormatError: a dictionary that is not of the residual stream, or of an architecture that
            saekit does not use.
    """
    SAE, _ = _sae_lens()
    chosen = list(ids) if ids else release_ids(release)
    for sae_id in tqdm(chosen, desc="importing", unit=" dictionaries", delay=2):
        try:
            with warnings.catch_warnings():  # on how to load the model: saekit folds that
                warnings.simplefilter("ignore")
                sae, _, sparsity = SAE.from_pretrained_with_cfg_and_sparsity(
                    release, sae_id, device="cpu", dtype="float32"
                )
        except (OSError, HfHubHTTPError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0].split(". ")[0].rstrip(".") or "no reason"
            raise InputError(
                f'SAELens gave no dictionary "{sae_id}" of "{release}" ({reason}): '
                "check both names and the network, or import a folder."
            ) from error
        yield from_sae(sae, Path(release) / sae_id, sparsity)


def from_sae(sae: Any, where: Path, sparsity: Any = None) -> Dictionary:
    """A loaded `sae_lens.SAE` as a saekit dictionary; `where` names it in errors.

    Raises:
        FormatError: not of the residual stream, or an architecture that saekit does not use.
    """
    config = sae.cfg.to_dict()
    if "metadata" not in config:
        raise FormatError(f"{where} has no metadata; it needs SAELens 6 or later.")
    tensors = {name: tensor.detach() for name, tensor in sae.state_dict().items()}
    return dictionary_of(config, tensors, where, sparsity)
