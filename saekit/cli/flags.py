"""Flags from a configuration: one for each field, with the text below the field as its help."""

import argparse
import ast
import inspect
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def field_texts(config: type[Any]) -> dict[str, str]:
    """What stands below each field of a dataclass, and of those it extends, on one line."""
    texts: dict[str, str] = {}
    for kind in reversed(config.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        body = definition.body if isinstance(definition, ast.ClassDef) else []
        for statement, below in zip(body, body[1:], strict=False):
            if (
                isinstance(statement, ast.AnnAssign)
                and isinstance(statement.target, ast.Name)
                and isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
            ):
                texts[statement.target.id] = " ".join(str(below.value.value).split())
    return texts


def field_options(config: type[Any], name: str) -> dict[str, Any]:
    """What `add_argument` needs to read a field's values: type, choices, number of words."""
    hint = get_type_hints(config)[name]
    kinds = [kind for kind in get_args(hint) if kind is not NoneType]
    if get_origin(hint) is Literal:
        return {"choices": kinds}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        return {"type": kinds[0], "nargs": "+", "metavar": kinds[0].__name__.upper()}
    return {"type": hint, "metavar": hint.__name__.upper()}


def add_flags(
    parser: argparse.ArgumentParser,
    config: type[Any],
    skip: Sequence[str] = (),
    other_names: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """One flag per field, such as `--batch-tokens`; what is not given is None.

    Args:
        config: a dataclass whose fields have a text below them.
        skip: fields that have a flag of their own.
        other_names: a further name of some flags.
        defaults: of the command, where they differ from those of the configuration.
    """
    texts = field_texts(config)
    for item in fields(config):
        if item.name in skip:
            continue
        flags = ["--" + item.name.replace("_", "-")]
        if other_names and item.name in other_names:
            flags.insert(0, other_names[item.name])
        default = (defaults or {}).get(item.name)
        shown = _default(item) if default is None else f"{default:,}"
        help_text = f"{texts[item.name].rstrip('.')} (default {shown})".replace("%", "%%")
        parser.add_argument(
            *flags, dest=item.name, default=default, help=help_text,
            **field_options(config, item.name),
        )  # fmt: skip


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        return "none"
    value = item.default
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return " ".join(f"{part:g}" for part in value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def given(args: argparse.Namespace, config: type[Any]) -> dict[str, Any]:
    """The fields that were given as flags."""
    chosen = {item.name: getattr(args, item.name, None) for item in fields(config)}
    return {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in chosen.items()
        if value is not None
    }
