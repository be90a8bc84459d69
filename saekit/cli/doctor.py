"""The command for bug reports: doctor."""

import argparse
import os
import platform
import time
from typing import Any

from saekit.cli.common import Command, say, show
from saekit.errors import SaekitError

# C++ file -> what it does, and what its processor needs
KERNELS = {
    "sparse_step": ("training step", ""),
    "selection": ("choice of features", ""),
    "int8": ("encoder in training, 8 bits", "AVX512-VNNI"),
    "topk": ("encoder in use, bfloat16", "AVX512-BF16"),
    "forward": ("the model's pass, bfloat16", ""),
    "products": ("the model's products, bfloat16", "AVX512-BF16"),
    "placing": ("shuffle buffer", ""),
    "examples": ("index: examples", ""),
    "token_pairs": ("index: token counts", ""),
}
ARITHMETIC = {"Cpu": "C++", "Cuda": "Triton", "Reference": "PyTorch"}  # what computes a step
PACKAGES = ("torch", "transformers", "numpy", "h5py")


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from saekit.native.compilation import CompileError, compiler
    from saekit.version import __version__

    try:
        path, words = compiler()
        found = f"{words} ({path})"
    except CompileError as error:
        found = str(error)
    return {
        "saekit": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "compiler": found,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _devices() -> dict[str, str]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = [torch.cuda.get_device_name(i) for i in range(count)]
    return {"cpu": f"{os.cpu_count()} processors"} | {
        f"cuda:{i}": name for i, name in enumerate(names)
    }


def _threads() -> dict[str, Any]:
    import torch

    names = "OMP_NUM_THREADS", "OMP_WAIT_POLICY"
    return {"torch": torch.get_num_threads()} | {name: os.environ.get(name) for name in names}


def _kernel(name: str) -> dict[str, Any]:
    """Whether the functions of a C++ file are used, and the reason if not."""
    from saekit.native.compilation import CompileError, compiled
    from saekit.native.library import library

    work, needed = KERNELS[name]
    try:
        compiled(name)
        functions = library(name)
        reason = "" if functions else "what was compiled cannot be loaded"
        if functions and needed and not functions.supported():
            reason = f"this processor has no {needed}"
    except CompileError as error:
        reason = str(error)
    return {"kernel": name, "for": work, "active": not reason, "reason": reason}


def _triton(devices: dict[str, str]) -> dict[str, Any]:
    from importlib.util import find_spec

    reason = "" if "cuda:0" in devices else "no CUDA device"
    if not reason and find_spec("triton") is None:
        reason = "triton is not installed"
    return {
        "kernel": "triton", "for": "training step on CUDA", "active": not reason, "reason": reason
    }  # fmt: skip


def _self_check(devices: dict[str, str]) -> dict[str, Any]:
    import torch

    from saekit.sae.kernels.self_check import TOLERANCE, check_kernels

    start = time.perf_counter()
    device = "cuda" if "cuda:0" in devices else "cpu"
    used, checks = check_kernels(torch.device(device))
    return {
        "device": device,
        "kernels": ARITHMETIC[used],
        "seconds": round(time.perf_counter() - start, 2),
        "tolerance": TOLERANCE,
        "passed": all(check.passed for check in checks),
        "failed": [check.name for check in checks if not check.passed],
        "errors": {
            c.name: c.error if c.error == c.error else None  # JSON has no NaN
            for c in checks
        },
    }


def _doctor(args: argparse.Namespace) -> None:
    devices = _devices()
    document = {
        "versions": _versions(),
        "devices": devices,
        "threads": _threads(),
        "kernels": [*map(_kernel, KERNELS), _triton(devices)],
        "self_check": _self_check(devices),
    }
    if args.json:
        show(args, document, None)
    else:
        from saekit.report.terminal.doctor_tables import doctor_tables

        for table in doctor_tables(document):
            say(table)
    check = document["self_check"]
    if not check["passed"]:
        raise SaekitError(
            f"The self-check failed ({', '.join(check['failed'])} differ from PyTorch by more than "
            f"{check['tolerance']:g}): do not trust what is trained here, and report this output."
        )


def add(command: Command) -> None:
    """The subcommand of this module."""
    command("doctor", _doctor, "versions, devices, active kernels and a self-check for bug reports")
