"""What C++ functions refuse, and that the table has what the sources have.

Mutations tried, each fails a test here: `+` of a size ignored; sizes not compared; contiguity not
asked; a parameter of the table left out.
"""

import ctypes
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from saekit.native.compilation import FOLDER
from saekit.native.library import Function, library
from saekit.native.signatures import SIGNATURES, Signature, Size, signatures


def test_every_exported_function_is_in_the_table():
    assert sorted(SIGNATURES) == sorted(path.stem for path in FOLDER.glob("*.cpp"))
    for name in SIGNATURES:
        text = (FOLDER / f"{name}.cpp").read_text(encoding="utf-8")
        text += (FOLDER / "tiles.h").read_text(encoding="utf-8") * ("tiles.h" in text)
        exported = "".join(re.findall(r'extern "C" \{.*?\}  // extern "C"', text, re.DOTALL))
        declared = {
            found[2]: (found[1], found[3])
            for found in re.finditer(
                r"^(?:extern \"C\" )?(void|int|int64_t) (\w+)\(([^)]*)\) \{", exported, re.MULTILINE
            )
        }
        declared.setdefault("supported", ("int", ""))
        for own in signatures(name):
            result, parameters = declared[own.name]
            assert {"void": None, "int64_t": "int64"}.get(result, result) == own.result
            kinds = [p.strip().rsplit(" ", 1)[0] for p in parameters.split(",") if p.strip()]
            assert len(kinds) == len(own.parameters), own.name
            for kind, parameter in zip(kinds, own.parameters, strict=True):
                assert kind.endswith("*") == (parameter.sizes is not None), parameter
                if parameter.sizes is None:
                    assert kind.removesuffix("_t") == parameter.type, parameter
                elif parameter.type in ("float32", "float64", "int32", "int64", "uint64"):
                    c = {"float32": "float", "float64": "double"}.get(
                        parameter.type, f"{parameter.type}_t"
                    )
                    packed = "uint32_t" if parameter.type == "int32" else c
                    assert kind.removeprefix("const ").rstrip("* ") in (c, packed), parameter
        assert declared.keys() - {own.name for own in signatures(name)} <= {"multiply", "supported"}


def test_sizes_by_hand():
    numbers = {"n": 25, "d": 8}
    assert Size("n").value(numbers) == 25 and Size("3").value(numbers) == 3
    assert Size("n", "+", 1).value(numbers) == 26 and Size("d", "/", 4).value(numbers) == 2
    assert Size("n", "^", 12).value(numbers) == 36 and Size("d", "^", 2).value(numbers) == 8
    assert Size("other").value(numbers) is None


class Recorder:
    """In the place of a function of a library: what reached it."""

    argtypes, restype = (), None

    def __call__(self, *arguments):
        self.arguments = arguments
        return 7


def function(library_name: str, name: str) -> tuple[Function, Recorder]:
    own: Signature = next(s for s in signatures(library_name) if s.name == name)
    return Function(own, recorder := Recorder()), recorder


def combine(matrix=None, weights=None, rows=2, d=3, narrow=0, out=None):
    call, recorder = function("sparse_step", "combine_rows")
    call(
        torch.zeros(2, 3) if matrix is None else matrix,
        torch.zeros(2) if weights is None else weights,
        rows, d, narrow, torch.zeros(3) if out is None else out,
    )  # fmt: skip
    return recorder


def test_addresses_and_numbers_reach_the_function():
    matrix, weights = torch.zeros(2, 3), torch.zeros(2)
    recorder = combine(matrix, weights)
    assert recorder.arguments[:5] == (matrix.data_ptr(), weights.data_ptr(), 2, 3, 0)
    assert recorder.argtypes == [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_void_p,
    ]  # fmt: skip
    assert recorder.restype is None
    combine(matrix.bfloat16(), narrow=1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"matrix": torch.zeros(2, 3).bfloat16()}, "matrix is torch.bfloat16; it must be float32"),
        ({"narrow": 1}, "matrix is torch.float32; it must be bfloat16"),
        ({"weights": torch.zeros(2, dtype=torch.float64)}, "weights is torch.float64"),
        ({"matrix": torch.zeros(3, 2).T}, "matrix must be contiguous"),
        ({"rows": 3}, "matrix has 6 elements; .* it must have 9"),
        ({"out": torch.zeros(2)}, "out has 2 elements; .* it must have 3"),
        ({"rows": -2, "d": -3}, "sizes are not negative"),
        ({"matrix": torch.zeros(2, 3, device="meta")}, "matrix is on meta"),
    ],
)
def test_wrong_arguments_are_refused(wrong, message):
    with pytest.raises((TypeError, ValueError), match=f"combine_rows: .*{message}"):
        combine(**wrong)


def test_none_and_the_number_of_arguments():
    call, recorder = function("selection", "at_or_above")
    pre, starts = torch.zeros(2, 4).bfloat16(), torch.zeros(3, dtype=torch.int64)
    call(pre, 2, 4, 1, starts, None)
    assert recorder.arguments[5] is None
    with pytest.raises(TypeError, match="starts is None; it must be int64"):
        call(pre, 2, 4, 1, None, None)
    with pytest.raises(ValueError, match="starts has 2 elements; .* it must have 3"):
        call(pre, 2, 4, 1, starts[:2], None)
    with pytest.raises(TypeError, match="takes 6 arguments, not 2"):
        call(pre, 2)


def test_a_size_of_its_own_is_the_same_everywhere():
    """`prefixes` x tokens x d of the upstream fixes the number of prefix ends."""
    call, _ = function("sparse_step", "weight_gradients")
    ints = torch.zeros(3, dtype=torch.int64)

    def run(ends: int) -> None:
        call(
            torch.zeros(2, 4), torch.zeros(2, 2, 4), torch.zeros(5, dtype=torch.int32), ints,
            torch.zeros(5), torch.zeros(5), 2, 4, 6, torch.zeros(ends, dtype=torch.int64), 0, 0,
            torch.zeros(6, 4), torch.zeros(6), torch.zeros(6, 4), torch.zeros(6, dtype=torch.int64),
        )  # fmt: skip

    run(2)
    with pytest.raises(ValueError, match="ends has 3 elements; .* it must have 2"):
        run(3)


def test_arrays_and_entries():
    call, recorder = function("token_pairs", "put_pairs")
    entry = np.dtype([("key", "i8"), ("total", "f8"), ("count", "i4"), ("largest", "f4")])
    table = np.zeros(5, entry)
    assert call(table, 5, table[:2].copy(), 2) == 7
    assert recorder.arguments[0] == table.ctypes.data
    with pytest.raises(ValueError, match="entries must be contiguous"):
        call(table, 5, table[::2], 3)
    with pytest.raises(TypeError, match="entries is int64; it must be entry"):
        call(table, 5, np.zeros(2, np.int64), 2)


def test_checks_stay_when_python_optimises():
    code = (
        "import torch\nfrom saekit.native.library import library\nf = library('sparse_step')\n"
        "if f is None: raise SystemExit(3)\n"
        "try: f.combine_rows(torch.zeros(2, 3), torch.zeros(2), 2000000, 3, 0, torch.zeros(3))\n"
        "except ValueError: raise SystemExit(4)\n"
    )
    if library("sparse_step") is None:
        pytest.skip("no C++ compiler")
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, check=False)
    assert done.returncode == 4, done.stderr
