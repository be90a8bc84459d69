"""Safetensors files: written atomically, read with errors that explain themselves."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from saekit.errors import FormatError, InputError
from saekit.files import atomic_path


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
