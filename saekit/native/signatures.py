"""The one table of the C++ functions: what each takes and gives.

A parameter without a type is an int64.  An array is written with its type and its sizes, whose
product must be its number of elements: `qkv: bfloat16[batch, pos]`.  A size is a number, another
parameter, or a name of its own, which the first array that has it fixes; `n+1` adds, `d/4`
divides, `n^12` is rounded up to a multiple.  `?` marks what may be None.  `weight` is bfloat16
where the parameter `narrow` is true, else float32; `entry` are the entries of token_pairs.cpp.
"""

import ctypes
import re
from dataclasses import dataclass, field

SIGNATURES = {
    "examples": """
        merge(n, position: int32[n], feature: int32[n], value: float32[n], score: float32[n],
            values: float32[rows, pos, k], features: int32[rows, pos, k],
            suffixes: uint64[rows, pos], first_row, pos, k, per_feature, before, window,
            kept_score: float32[d_sae, per_feature], kept_value: float32[d_sae, per_feature],
            kept_row: int32[d_sae, per_feature], kept_place: uint16[d_sae, per_feature],
            kept_suffix: uint64[d_sae, per_feature],
            kept_window: float32[d_sae, per_feature, window])
    """,
    "forward": """
        attend(qkv: bfloat16[batch, pos, 3, heads, d_head], batch, pos, heads, d_head,
            scale: float, out: bfloat16[batch, pos, heads, d_head])
        add_norm(stream: float32[rows, d], delta: bfloat16[rows, d]?, place: int32[rows]?,
            kept: bfloat16[places, d]?, gamma: float32[d], beta: float32[d], eps: float, rows, d,
            normed: bfloat16[rows, d]?)
    """,
    "int8": """
        supported() -> int
        padded_tokens(tokens) -> int
        pack_tokens(x: float32[tokens, d], factors: float32[d], tokens, d,
            packed: int32[tokens^12, d/4], scales: float32[tokens^12], shifts: int32[tokens^12])
        pack_features(W: bfloat16[features, d], factors: float32[d], features, d,
            packed: int32[features, d/4], scales: float32[features])
        products(x: int32[tokens^12, d/4], scales: float32[tokens^12], shifts: int32[tokens^12],
            W: int32[features, d/4], feature_scales: float32[features],
            biases: float32[features], tokens, d, features, out: bfloat16[tokens, features])
    """,
    "placing": """
        place_rows(source: bfloat16[sources, d], rows: int64[n], places: int64[n], n, d,
            out: bfloat16[slots, d]) -> int
    """,
    "products": """
        supported() -> int
        product(x: bfloat16[rows, inputs], W: bfloat16[outputs, inputs], bias: float32[outputs],
            rows, inputs, outputs, gelu, out: bfloat16[rows, outputs])
    """,
    "selection": """
        largest(pre: bfloat16[tokens, n], tokens, n, k, chosen: int32[tokens, k])
        count_bits(pre: bfloat16[size], size, floor: int16, counts: int64[32768])
        at_or_above(pre: bfloat16[tokens, n], tokens, n, floor: int16, starts: int64[tokens+1],
            features: int32[found]?)
    """,
    "sparse_step": """
        centre_rows(x: bfloat16[rows, d]?, wide: float32[rows, d]?, scale: float,
            centre: float32[d], rows, d, centred: float32[rows, d], narrow: bfloat16[rows, d]?)
        forward_backward(inputs: float32[tokens, d], target: float32[tokens, d],
            W_enc: weight[d_sae, d], b_enc: float32[d_sae], W_dec: weight[d_sae, d],
            features: int32[pairs], starts: int64[tokens+1], tokens, d, ends: int64[prefixes],
            scales: float32[prefixes], prefixes, rectify, narrow, values: float32[pairs],
            slopes: float32[pairs], errors: float32[prefixes, tokens, d],
            upstream: weight[prefixes, tokens, d], squared: float64[prefixes, tokens])
        weight_gradients(inputs: weight[tokens, d], upstream: weight[prefixes, tokens, d],
            features: int32[pairs], starts: int64[tokens+1], values: float32[pairs],
            slopes: float32[pairs], tokens, d, d_sae, ends: int64[prefixes], add, narrow,
            g_enc: float32[d_sae, d], g_bias: float32[d_sae], g_dec: float32[d_sae, d],
            fired: int64[d_sae])
        combine_rows(matrix: weight[rows, d], weights: float32[rows], rows, d, narrow,
            out: float32[d])
        adam_rows(weights: float32[rows, d], gradient: float32[rows, d], mean: float32[rows, d],
            square: float32[rows, d], rows, d, beta1: float, beta2: float, rate: float,
            root_correction: float, eps: float, unit, shadow: bfloat16[rows, d]?)
    """,
    "token_pairs": """
        count_pairs(table: entry[slots], slots, d_sae, token: int32[n], feature: int32[n],
            value: float32[n], n) -> int64
        put_pairs(table: entry[slots], slots, entries: entry[n], n)
    """,
    "topk": """
        supported() -> int
        top_k(x: float32[tokens, d_in], panels: bfloat16[columns, d_in^2],
            rows: float32[d_sae, d_in], bias: float32[columns], doubt: float32[columns],
            norms: float32[columns], rounding: float32[columns], tokens, d_in, columns, k,
            values: float32[tokens, k], features: int64[tokens, k])
    """,
}
NUMBERS = {"int": ctypes.c_int, "int16": ctypes.c_int16, "int64": ctypes.c_int64,
           "float": ctypes.c_float}  # fmt: skip

_FUNCTION = re.compile(r"(\w+)\(([^)]*)\)(?:\s*->\s*(\w+))?")
_PARAMETER = re.compile(r"(\w+)(?:: (\w+)(?:\[([^]]*)\](\??))?)?(?:,\s*|$)")
_SIZE = re.compile(r"(\w+)(?:([+/^])(\d+))?")


@dataclass(frozen=True)
class Size:
    """One factor of an array's number of elements."""

    name: str
    sign: str = ""
    number: int = 0
    plain: bool = field(init=False)
    """whether it is a name and nothing else"""

    def __post_init__(self) -> None:
        object.__setattr__(self, "plain", not self.sign and not self.name.isdigit())

    def value(self, numbers: dict[str, int]) -> int | None:
        """The size, if all of it is known."""
        known = int(self.name) if self.name.isdigit() else numbers.get(self.name)
        if known is None or not self.sign:
            return known
        if self.sign == "+":
            return known + self.number
        return known // self.number if self.sign == "/" else known + -known % self.number


@dataclass(frozen=True)
class Parameter:
    """Of a C++ function; a number where `sizes` is None."""

    name: str
    type: str
    sizes: tuple[Size, ...] | None
    optional: bool


@dataclass(frozen=True)
class Signature:
    """Of a C++ function."""

    name: str
    parameters: tuple[Parameter, ...]
    result: str | None


def signatures(library: str) -> list[Signature]:
    """All functions of a C++ file."""
    found = []
    for name, parameters, result in _FUNCTION.findall(SIGNATURES[library]):
        own = []
        for label, kind, sizes, optional in _PARAMETER.findall(" ".join(parameters.split())):
            factors = [_SIZE.fullmatch(size) for size in sizes.split(", ")] if sizes else []
            parts = tuple(Size(m[1], m[2] or "", int(m[3] or 0)) for m in factors if m)
            own.append(Parameter(label, kind or "int64", parts or None, bool(optional)))
        found.append(Signature(name, tuple(own), result or None))
    return found
