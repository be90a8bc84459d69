"""C++ functions compiled on first use for this processor, and how tensors are handed to them.

A library is built with the system's C++ compiler and kept in the user's cache folder, under the
hash of its source, of the compiler and of the processor.  Without a compiler everything works all
the same, slower, through PyTorch and NumPy; a warning says so once.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)
# torch has loaded an OpenMP runtime of the same name already, so both share one thread pool
FLAGS = (
    "-O3 -march=native -mprefer-vector-width=512 -std=c++17 -fopenmp -fno-math-errno "
    "-fno-trapping-math -shared -fPIC"
).split()
FOLDER = Path(__file__).parent
HEADERS = sorted(FOLDER.glob("*.h"))  # that all files may include


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "saekit"


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by different machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


@cache
def _compiler() -> str | None:
    found = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")
    if found is None:
        logger.warning("no C++ compiler (g++): PyTorch and NumPy do its work, about 3x slower")
    return found


@cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file; None if there is no working compiler."""
    compiler = _compiler()
    if compiler is None:
        return None
    texts = [file.read_text(encoding="utf-8") for file in (source, *HEADERS)]
    key = "\0".join([*texts, compiler, *FLAGS, _processor()])
    name = f"{source.stem}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    try:
        path = _cache_folder() / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                built = Path(folder) / name
                command = [compiler, *FLAGS, f"-I{FOLDER}", str(source), "-o", str(built)]
                subprocess.run(command, check=True, capture_output=True, text=True)
                os.replace(built, path)  # two processes may build at the same time
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or error
        logger.warning("the C++ kernel cannot be built, PyTorch or NumPy does its work: %s", reason)
        return None


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc use freed memory again instead of returning it to the system.

    A step frees and allocates the same megabytes over and over; fresh pages cost 5% of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(parameter, 1 << 30)


def address(tensor: Any, dtype: Any) -> ctypes.c_void_p:
    """Where the values of a contiguous tensor of this type begin; a null pointer for None."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.dtype == dtype and tensor.is_contiguous(), (tensor.dtype, tensor.stride())
    return ctypes.c_void_p(tensor.data_ptr())


def array_address(array: np.ndarray, dtype: Any) -> ctypes.c_void_p:
    """The same for an array."""
    assert array.dtype == dtype and array.flags.c_contiguous, (array.dtype, array.strides)
    return ctypes.c_void_p(array.ctypes.data)
