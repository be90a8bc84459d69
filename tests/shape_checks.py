"""The run-time checker of jaxtyping shapes in the tests.

Only functions that name a tensor or array in their signature are checked: there a wrong axis is
a silent error; elsewhere pyright reads the types.
"""

from collections.abc import Callable
from typing import Any

from beartype import BeartypeConf, BeartypeStrategy, beartype

# An int is accepted where a float is meant (PEP 484).  Containers are checked by one item.
_CHECKER = beartype(conf=BeartypeConf(is_pep484_tower=True, strategy=BeartypeStrategy.O1))


def _names_a_shape(annotation: Any) -> bool:
    return "jaxtyping." in f"{getattr(annotation, '__module__', '')}.{annotation!r}"


def checked(function: Callable) -> Callable:
    """`function` with its argument and return types checked, if one of them is a shape."""
    annotations = getattr(function, "__annotations__", {})
    if any(_names_a_shape(annotation) for annotation in annotations.values()):
        return _CHECKER(function)
    return function
