"""Tensors and numbers as arguments of C++ functions; a null pointer for None."""

import ctypes

import torch
from torch import Tensor

from saekit.native.library import address

long = ctypes.c_int64


def f32(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of float32."""
    return address(tensor, torch.float32)


def i32(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of int32."""
    return address(tensor, torch.int32)


def i64(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of int64."""
    return address(tensor, torch.int64)


def bf16(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of bfloat16."""
    return address(tensor, torch.bfloat16)


def either(tensor: Tensor) -> ctypes.c_void_p:
    """Of float32 or bfloat16; `is_bf16` says which."""
    return bf16(tensor) if tensor.dtype == torch.bfloat16 else f32(tensor)


def is_bf16(tensor: Tensor) -> ctypes.c_int64:
    """1 for bfloat16, else 0."""
    return long(tensor.dtype == torch.bfloat16)
