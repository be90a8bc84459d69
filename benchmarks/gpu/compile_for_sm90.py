"""Compiles every Triton program for an H100 (sm_90) without a GPU: one JSON line per program.

Registers and shared memory of each, its instructions, and how many of them spill registers to
memory.  Needs Triton, whose package brings NVIDIA's assembler; the exit code is 1 if one fails.

    python benchmarks/gpu/compile_for_sm90.py            # all sizes that are in use
    python benchmarks/gpu/compile_for_sm90.py --small    # one size of each program
"""

import argparse
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from saekit.sae.kernels import cuda_pairs, cuda_rows
from saekit.sae.kernels.cuda import RUN, _shape_of

TARGET = GPUTarget("cuda", 90, 32)
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
MULTIPLES_OF_16 = {"d_sae", "size", "width", "tokens", "d", "k"}  # Triton then loads wider
FLOAT, INT, LONG, NUMBER = "*fp32", "*i32", "*i64", "i32"
SELECTION = {"chosen": INT, "d_sae": NUMBER, "k": NUMBER}
ADAM = {
    **dict.fromkeys(("weights", "gradient", "mean", "square"), FLOAT),
    **dict.fromkeys(("size", "width"), NUMBER),
    **dict.fromkeys(("beta1", "beta2", "rate", "root_correction", "eps"), "fp32"),
}
PAIRS = {
    **dict.fromkeys(
        ("inputs", "target", "W_enc", "b_enc", "W_dec", "scales", "values", "slopes", "errors",
         "upstream", "squared", "part_enc", "part_dec", "part_bias", "g_enc", "g_bias", "g_dec"),
        FLOAT,
    ),
    **dict.fromkeys(("features", "ends", "firsts", "extra_ends", "part_fired"), INT),
    **dict.fromkeys(("starts", "order", "owners", "g_fired"), LONG),
    **dict.fromkeys(("tokens", "d", "d_sae"), NUMBER),
}  # fmt: skip

Program = tuple[str, Any, dict[str, str], dict[str, Any], int]
"""Name, function, types of its arguments, constants, warps."""


def power_of_2(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


def programs(small: bool) -> Iterator[Program]:
    """Every program at every size that is in use, as `saekit.sae.kernels.cuda` starts them."""
    for kind, shift in (("bf16", 16), ("fp32", 0)):
        for d_sae in (4096,) if small else (256, 1024, 4096, 8192, 24576, 32768):
            block = max(128, power_of_2(d_sae))
            yield (
                f"largest {kind} {d_sae}", cuda_rows.largest, {"pre": f"*{kind}", **SELECTION},
                {"SHIFT": shift, "BLOCK": block}, min(32, max(4, block // 1024)),
            )  # fmt: skip
    for unit in (False, True):
        for shadow in (True,) if small else (False, True):
            types = {**ADAM, "shadow": "*i16" if shadow else FLOAT}
            constants = {"UNIT": unit, "SHADOW": shadow, "BLOCK": 1024}
            yield f"adam unit={unit} shadow={shadow}", cuda_rows.adam_rows, types, constants, 4
    for d in (768,) if small else (64, 192, 768, 1024, 4096):
        shape = _shape_of(d)
        warps = shape.pop("num_warps")
        for prefixes in (1,) if small else (1, 5):
            shared = {"PREFIXES": prefixes, **shape}
            for rectify in (True,) if small else (True, False):
                yield (
                    f"forward_backward d={d} prefixes={prefixes} rectify={rectify}",
                    cuda_pairs.forward_backward, PAIRS, {"RECTIFY": rectify, **shared}, warps,
                )  # fmt: skip
            runs = {"RUN": RUN, **shared}
            yield (
                f"later_runs d={d} prefixes={prefixes}",
                cuda_pairs.later_runs,
                PAIRS,
                runs,
                warps,
            )
            for add in (False,) if small else (False, True):
                yield (
                    f"feature_sums d={d} prefixes={prefixes} add={add}",
                    cuda_pairs.feature_sums, PAIRS, {"ADD": add, **runs}, warps,
                )  # fmt: skip


def compiled(program: Program, folder: Path) -> dict[str, Any]:
    """What the assembler says of a program."""
    name, function, types, constants, warps = program
    names = function.arg_names
    signature = {n: types[n] if n not in constants else "constexpr" for n in names}
    aligned = [
        place
        for place, n in enumerate(names)
        if signature[n].startswith("*") or (signature[n] == NUMBER and n in MULTIPLES_OF_16)
    ]
    source = ASTSource(
        function, signature, {(names.index(n),): value for n, value in constants.items()},
        {(place,): [["tt.divisibility", 16]] for place in aligned},
    )  # fmt: skip
    begin = time.perf_counter()
    kernel = triton.compile(source, target=TARGET, options={"num_warps": warps})
    seconds = time.perf_counter() - begin
    binary = folder / "program.cubin"
    binary.write_bytes(kernel.asm["cubin"])

    def shown(option: str) -> str:
        command = [str(TOOLS / "cuobjdump"), option, str(binary)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    usage = {key: int(n) for key, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", shown("-res-usage"))}
    instructions = re.findall(
        r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_.]+)", shown("-sass"), re.MULTILINE
    )
    return {
        "program": name,
        "registers": usage.get("REG"),
        "stack": usage.get("STACK"),
        "shared": kernel.metadata.shared,
        "instructions": len(instructions),
        "spills": sum(one.startswith(("LDL", "STL")) for one in instructions),
        "loads_of_16_bytes": sum(
            one.startswith("LDG") and "128" in one for one in instructions
        ),
        "seconds": round(seconds, 2),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="one size of each program")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for program in programs(args.small):
            try:
                row = compiled(program, Path(folder))
            except Exception as error:  # a program that fails must not hide the next one
                failed = True
                row = {"program": program[0], "error": f"{type(error).__name__}: {error}"[:600]}
            print(json.dumps(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
