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
    """A C++ function; raises ValueError or TypeError instead of reading foreign memory."""

    def __init__(self, signature: Signature, call: Any):
        self.signature, self._call = signature, call
        call.argtypes = [
            NUMBERS[p.type] if p.sizes is None else ctypes.c_void_p for p in signature.parameters
        ]
        call.restype = NUMBERS[signature.result] if signature.result else None

    def __call__(self, *values: Any) -> Any:
        """Tensors and arrays are contiguous, on the CPU, of the type and size of the table."""
        parameters = self.signature.parameters
        if len(values) != len(parameters):
            raise TypeError(
                f"{self.signature.name} takes {len(parameters)} arguments, not {len(values)}"
            )
        numbers = {
            p.name: int(value)
            for p, value in zip(parameters, values, strict=True)
            if p.type == "int64" and p.sizes is None
        }
        if min(numbers.values(), default=0) < 0:
            raise ValueError(f"{self.signature.name}: sizes are not negative: {numbers}")
        return self._call(
            *[
                self._address(p, value, numbers) if p.sizes is not None
                else numbers.get(p.name, value)
                for p, value in zip(parameters, values, strict=True)
            ]
        )  # fmt: skip

    def _address(self, parameter: Parameter, value: Any, numbers: dict[str, int]) -> int | None:
        """Where the values begin."""
        wanted = parameter.type
        if wanted == "weight":
            wanted = "bfloat16" if numbers["narrow"] else "float32"
        what = f"{self.signature.name}: {parameter.name}"
        if value is None:
            if parameter.optional:
                return None
            raise TypeError(f"{what} is None; it must be {wanted}")
        if _type_name(value.dtype) != wanted:
            raise TypeError(f"{what} is {value.dtype}; it must be {wanted}")
        if hasattr(value, "data_ptr"):
            if value.device.type != "cpu":
                raise ValueError(f"{what} is on {value.device}; it must be on the CPU")
            contiguous, elements, start = value.is_contiguous(), value.numel(), value.data_ptr()
        else:
            contiguous, elements = value.flags.c_contiguous, value.size
            start = value.ctypes.data
        if not contiguous:
            raise ValueError(f"{what} must be contiguous")
        self._check_elements(what, parameter, elements, numbers)
        return start

    @staticmethod
    def _check_elements(
        what: str, parameter: Parameter, elements: int, numbers: dict[str, int]
    ) -> None:
        known, unknown = 1, None
        for size in parameter.sizes or ():
            value = size.value(numbers)
            if value is None:
                unknown = size.name
            else:
                known *= value
        if unknown is not None:
            numbers[unknown] = elements // known if known else 0
            known *= numbers[unknown]
        if known != elements:
            raise ValueError(f"{what} has {elements} elements; with {numbers} it must have {known}")


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
