"""The C++ functions as Python ones that take tensors, arrays and numbers, and check them.

Without a compiler everything works all the same, slower, through PyTorch and NumPy; a warning says
so once.  `python -O` leaves the checks in place.
"""

import ctypes
import logging
import os
from functools import cache
from types import SimpleNamespace
from typing import Any

from saekit.native.compilation import CompileError, compiled
from saekit.native.signatures import NUMBERS, Parameter, Signature, signatures

logger = logging.getLogger(__name__)
ENTRY_BYTES = 24  # of a struct Entry in token_pairs.cpp
Functions = SimpleNamespace
"""The functions of a C++ file, by name."""


@cache
def _type_name(dtype: Any) -> str:
    """Of a dtype of torch or NumPy, as the table of signatures has it."""
    if getattr(dtype, "fields", None) and dtype.itemsize == ENTRY_BYTES:
        return "entry"
    return str(dtype).removeprefix("torch.")


class Function:
    """A C++ function; raises ValueError or TypeError instead of reading foreign memory.

    A training step makes hundreds of calls, so what is known of the signature is sorted out once.
    """

    def __init__(self, signature: Signature, call: Any):
        self.signature, self._call = signature, call
        call.argtypes = [
            NUMBERS[p.type] if p.sizes is None else ctypes.c_void_p for p in signature.parameters
        ]
        call.restype = NUMBERS[signature.result] if signature.result else None
        places = list(enumerate(signature.parameters))
        self._sizes = [(n, p.name) for n, p in places if p.sizes is None and p.type == "int64"]
        self._arrays = [(n, p) for n, p in places if p.sizes is not None]

    def __call__(self, *values: Any) -> Any:
        """Tensors and arrays are contiguous, on the CPU, of the type and size of the table."""
        if len(values) != len(self.signature.parameters):
            raise TypeError(
                f"{self.signature.name} takes {len(self.signature.parameters)} arguments, "
                f"not {len(values)}"
            )
        arguments = list(values)
        numbers: dict[str, int] = {}
        for place, name in self._sizes:
            numbers[name] = arguments[place] = int(values[place])
        if numbers and min(numbers.values()) < 0:
            raise ValueError(f"{self.signature.name}: sizes are not negative: {numbers}")
        for place, parameter in self._arrays:
            arguments[place] = self._address(parameter, values[place], numbers)
        return self._call(*arguments)

    def _address(self, parameter: Parameter, value: Any, numbers: dict[str, int]) -> int | None:
        """Where the values begin."""
        wanted = parameter.type
        if wanted == "weight":
            wanted = "bfloat16" if numbers["narrow"] else "float32"
        if value is None:
            if parameter.optional:
                return None
            raise TypeError(f"{self._of(parameter)} is None; it must be {wanted}")
        if _type_name(value.dtype) != wanted:
            raise TypeError(f"{self._of(parameter)} is {value.dtype}; it must be {wanted}")
        if hasattr(value, "data_ptr"):
            if not value.is_cpu:
                raise ValueError(
                    f"{self._of(parameter)} is on {value.device}; it must be on the CPU"
                )
            contiguous, elements, start = value.is_contiguous(), value.numel(), value.data_ptr()
        else:
            contiguous, elements = value.flags.c_contiguous, value.size
            start = value.ctypes.data
        if not contiguous:
            raise ValueError(f"{self._of(parameter)} must be contiguous")
        known, unknown = 1, None
        for size in parameter.sizes or ():
            factor = numbers.get(size.name) if size.plain else size.value(numbers)
            if factor is None:
                unknown = size.name
            else:
                known *= factor
        if unknown is not None:
            numbers[unknown] = elements // known if known else 0
            known *= numbers[unknown]
        if known != elements:
            raise ValueError(
                f"{self._of(parameter)} has {elements} elements; with {numbers} it must have "
                f"{known}"
            )
        return start

    def _of(self, parameter: Parameter) -> str:
        return f"{self.signature.name}: {parameter.name}"


@cache
def library(name: str) -> Functions | None:
    """The functions of a C++ file; None if there is no working compiler."""
    try:
        loaded = ctypes.CDLL(str(compiled(name)))
    except (OSError, CompileError) as error:
        _warn(str(error))
        return None
    # what a processor does not support is not in its library
    return Functions(
        **{s.name: Function(s, loaded[s.name]) for s in signatures(name) if hasattr(loaded, s.name)}
    )


@cache
def _warn(reason: str) -> None:
    """Once per reason: all libraries lack the same compiler."""
    logger.warning("C++ is not used (%s): PyTorch and NumPy do its work, about 3x slower", reason)


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, in glibc's malloc.h


def keep_freed_memory() -> None:
    """Let glibc use freed memory again instead of returning it to the system.

    A step frees and allocates the same megabytes over and over; fresh pages cost 5% of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for parameter in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            mallopt(parameter, 1 << 30)
