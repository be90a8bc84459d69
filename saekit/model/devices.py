"""Devices that are there."""

import torch

from saekit.errors import InputError


def check_device(device: str) -> None:
    """Prove that tensors can be made there, before anything is loaded.

    Raises:
        InputError: a device that this machine or this torch does not have.
    """
    try:
        torch.empty(1, device=device)
    # a torch built without the device raises one of the last two
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f'torch finds no device "{device}" here: use cpu.') from error
