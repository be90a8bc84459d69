"""Documents are read field by field, and the first wrong value is named."""

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
from pydantic import ConfigDict

from saekit.documents import (
    DOCUMENT,
    HeadText,
    Share,
    json_schema,
    one_line_per_key,
    read_record,
)
from saekit.errors import FormatError


@dataclass
class Row:
    head: HeadText
    share: Share | None
    """of all
    there is"""


@dataclass
class Table:
    __pydantic_config__: ClassVar[ConfigDict] = DOCUMENT

    rows: list[Row]
    """in order"""
    n: int = field(default=0)


GOOD = {"rows": [{"head": "L1-H2", "share": 0.5}, {"head": "L0-H0", "share": None}], "n": 3}


def test_a_document_becomes_records():
    assert read_record(Table, GOOD, "x.json", "a table") == Table(
        [Row("L1-H2", 0.5), Row("L0-H0", None)], 3
    )


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "x.json is not a table: rows is missing."),
        ([], "x.json is not a table: the document is []: "),
        ({"rows": [{"head": "L1-H2", "share": 1.5}]}, "rows.0.share is 1.5: input should be less"),
        ({"rows": [{"head": "9.9", "share": None}]}, "rows.0.head is '9.9': string should match"),
        ({"rows": [{"head": "L1-H2", "share": float("nan")}]}, "rows.0.share is nan: "),
        ({"rows": "x" * 1000}, "rows is 'xxx"),
    ],
)
def test_the_first_wrong_value_is_named(document, said):
    with pytest.raises(FormatError) as caught:
        read_record(Table, document, "x.json", "a table")
    assert said in str(caught.value)
    assert len(str(caught.value)) < 200 and "\n" not in str(caught.value)


def test_the_schema_is_made_of_types_and_texts():
    schema = json_schema(Table)
    assert schema["properties"]["rows"]["description"] == "in order"
    share = schema["$defs"]["Row"]["properties"]["share"]
    assert share["description"] == "of all there is"
    assert {"type": "number", "minimum": 0, "maximum": 1} in share["anyOf"]
    assert schema["required"] == ["rows"]


def test_one_line_per_key():
    assert one_line_per_key({"a": [1, 2], "b": "ö"}) == '{\n"a": [1, 2],\n"b": "ö"\n}\n'
    with pytest.raises(ValueError):
        one_line_per_key({"a": float("nan")})
