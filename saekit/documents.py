"""JSON documents whose fields are described once, by dataclasses: checked when read, with a schema.

The type of a field says what values it may have, the text below it what they mean.  Nothing that
trains imports this module, so that training needs no pydantic.
"""

import json
from functools import cache
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema

from saekit.errors import FormatError

T = TypeVar("T")

# `__pydantic_config__` of the outermost dataclass; the inner ones take it over
DOCUMENT = ConfigDict(use_attribute_docstrings=True, allow_inf_nan=False)

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Layer = Annotated[int, Field(ge=0)]
Position = Annotated[int, Field(ge=1)]  # 1-based, BOS not counted
HeadText = Annotated[str, Field(pattern="^L[0-9]+-H[0-9]+$")]
FeatureText = Annotated[str, Field(pattern="^[0-9]+/[0-9]+$")]
Span = Annotated[list[Layer], Field(min_length=2, max_length=2)]


@cache
def _adapter(kind: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(kind)


def read_record(kind: type[T], document: Any, origin: str, what: str) -> T:
    """The record of type `kind` that a JSON document holds; keys it does not know are ignored.

    Args:
        kind: a dataclass.
        origin: the file, as a sentence names it.
        what: what the file should be, such as "a complete head atlas".

    Raises:
        FormatError: a value is missing or of another form; the first one is named.
    """
    try:
        return _adapter(kind).validate_python(document)
    except ValidationError as error:
        raise FormatError(f"{origin} is not {what}: {_first(error)}.") from error


def _first(error: ValidationError) -> str:
    """`set.share_positive is 1.2: input should be less than or equal to 1`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(map(str, first["loc"])) or "the document"
    said = first["msg"][:1].lower() + first["msg"][1:]
    if first["type"] == "missing":
        return f"{place} is missing"
    value = repr(first["input"])
    return f"{place} is {value if len(value) <= 60 else value[:57] + '...'}: {said}"


class _Schema(GenerateJsonSchema):
    """Without a title for every field, which would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def generate(self, schema: Any, mode: Any = "validation") -> dict[str, Any]:
        return {"$schema": self.schema_dialect, **super().generate(schema, mode)}


def json_schema(kind: type[Any]) -> dict[str, Any]:
    """The JSON schema (2020-12) of a document; descriptions are the texts below its fields."""
    described = json.dumps(_adapter(kind).json_schema(schema_generator=_Schema))
    schema = json.loads(described.replace("\\n", " "))  # texts are wrapped in the source
    if "schema_version" in schema["properties"]:
        # a constant with a default, which readers insist on all the same
        schema["required"].insert(0, "schema_version")
    return schema


def one_line_per_key(document: dict[str, Any]) -> str:
    """A document as text: short enough to read, not thousands of lines for one grid."""
    lines = [
        f"{json.dumps(name)}: {json.dumps(value, ensure_ascii=False, allow_nan=False)}"
        for name, value in document.items()
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"
