"""Relations: lists of (source, target) pairs of words, ours and the user's.  No torch.

saekit's own tables are in `saekit/heads/data`, one TSV file each with its category, description
and source in comment lines; names, opposites and synonyms come from the tables that the generated
text is made of (`saekit/data`); letters, years and numbers follow from a rule.  A user's relation
is a file: CSV or TSV with the header `source,target`, or JSON with a list of [source, target]
lists (the form of the published MAPS collection, which loads through this path).
"""

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from saekit.errors import InputError
from saekit.text import relational

COLUMNS = ["source", "target"]
SUFFIXES = (".csv", ".tsv", ".json")
COPYING_K = 1  # a copying head writes the word itself, before any other
OTHER_K = 10  # other relations have several good answers; both values are those of MAPS

Pair = tuple[str, str] | tuple[int, int]


@dataclass(frozen=True)
class Relation:
    """A named list of pairs.

    Attributes:
        name: of the table, of the file, or "pairs" for a list from a program.
        category: algorithmic, knowledge, linguistic, translation or user.
        source: where the pairs come from.
        pairs: (source, target): words without the leading space, or token ids.
    """

    name: str
    category: str
    source: str
    pairs: tuple[Pair, ...]
    about: str = ""

    @property
    def copying(self) -> bool:
        """Whether targets are the sources themselves, by its name or by its pairs."""
        return "copying" in self.name or all(source == target for source, target in self.pairs)

    @property
    def default_k(self) -> int:
        """1 for copying relations, 10 for others (MAPS)."""
        return COPYING_K if self.copying else OTHER_K


@cache
def _table(name: str) -> Relation:
    """One of the TSV files: `# key: value` lines, the header, the pairs."""
    text = files("saekit.heads").joinpath("data", f"{name}.tsv").read_text(encoding="utf-8")
    lines = text.splitlines()
    notes = dict(row[2:].split(": ", 1) for row in lines if row.startswith("# "))
    rows = [row.split("\t") for row in lines if row and not row.startswith("#")][1:]
    pairs = tuple((source, target) for source, target in rows)
    return Relation(name, notes["category"], notes["source"], pairs, notes["about"])


def _names() -> Relation:
    pairs = tuple((name, name) for name in relational.first_names())
    source = "saekit's list of first names"
    return Relation("name_copying", "algorithmic", source, pairs, "a first name and itself")


def _opposites() -> Relation:
    pairs = {
        (word, opposite): None
        for word, answers in relational.opposites().items()
        for opposite in sorted(answers)
    }
    source = "saekit's table of opposites, both ways"
    return Relation("opposites", "linguistic", source, tuple(pairs), "a word and its opposite")


def _synonyms() -> Relation:
    pairs = tuple(relational.relation_table("synonym").items())
    source = "saekit's table of synonyms"
    return Relation("synonyms", "linguistic", source, pairs, "a word and one of like meaning")


def _by_rule(
    name: str, about: str, sources: Iterable[Any], target: Callable[[Any], object]
) -> Relation:
    pairs = tuple((str(source), str(target(source))) for source in sources)
    return Relation(name, "algorithmic", "made by a rule", pairs, about)


def _words() -> list[str]:
    return [str(source) for source, _ in _table("general_copying").pairs]


_RULES: dict[str, Callable[[], Relation]] = {
    "name_copying": _names,
    "opposites": _opposites,
    "synonyms": _synonyms,
    "first_letters": lambda: _by_rule(
        "first_letters", "a word and its first letter", _words(), lambda word: word[0]
    ),
    "last_letters": lambda: _by_rule(
        "last_letters", "a word and its last letter", _words(), lambda word: word[-1]
    ),
    "capitalised": lambda: _by_rule(
        "capitalised", "a word and its capitalised form", _words(), str.capitalize
    ),
    "following_years": lambda: _by_rule(
        "following_years", "a year and the next", range(1500, 2100), lambda year: year + 1
    ),
    "following_numbers": lambda: _by_rule(
        "following_numbers", "a number and the next", range(1000), lambda number: number + 1
    ),
}


@cache
def relation_names() -> tuple[str, ...]:
    """Names of all relations that come with saekit, sorted."""
    folder = files("saekit.heads").joinpath("data")
    tables = [entry.name[:-4] for entry in folder.iterdir() if entry.name.endswith(".tsv")]
    return tuple(sorted([*tables, *_RULES]))


def _check_pairs(rows: Iterable[tuple[int, Any]], where: str, unit: str) -> tuple[Pair, ...]:
    """Rows (place, pair) as pairs of words or ids; empty fields and repetitions are refused."""
    seen: dict[Pair, int] = {}
    for place, row in rows:
        at = f"{where}, {unit} {place}"
        if isinstance(row, str) or not isinstance(row, Sequence) or len(row) != 2:
            raise InputError(f"{at}: a pair is one source and one target, not {row!r}.")
        source, target = row
        if isinstance(source, str) and isinstance(target, str):
            pair: Pair = (source.strip(), target.strip())
            if not all(pair):
                raise InputError(f"{at}: the pair {row!r} has an empty word; fill it or remove it.")
        elif all(isinstance(x, int) and not isinstance(x, bool) for x in (source, target)):
            pair = (source, target)
        else:
            raise InputError(f"{at}: the pair {row!r} is neither two words nor two token ids.")
        if pair in seen:
            raise InputError(
                f"{at}: the pair {pair} stands in {unit} {seen[pair]} already; remove one."
            )
        seen[pair] = place
    if not seen:
        raise InputError(f"{where} holds no pairs: give at least one source and target.")
    if len({type(pair[0]) for pair in seen}) > 1:
        raise InputError(f"{where} mixes words and token ids; use one of them.")
    return tuple(seen)


def _table_rows(path: Path, text: str) -> list[tuple[int, list[str]]]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    lines = [row for row in text.splitlines() if not row.startswith("#")]
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        rows = [(number, row) for number, row in enumerate(reader, 1) if row]
    except csv.Error as error:
        raise InputError(f"{path} is no table that can be read ({error}).") from error
    if not rows:
        raise InputError(f"{path} is empty: its first line is the header source,target.")
    header = [name.strip().lower() for name in rows[0][1]]
    if header != COLUMNS:
        raise InputError(
            f"{path} has the columns {', '.join(rows[0][1])}; a relation has the two columns "
            "source,target, named in its first line."
        )
    return rows[1:]


def _json_rows(path: Path, text: str) -> list[tuple[int, Any]]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}).") from error
    if not isinstance(document, list):
        raise InputError(f"{path} is no list: a relation is a list of [source, target] lists.")
    return list(enumerate(document, 1))


def read_relation(path: str | Path) -> Relation:
    """A user's relation from a CSV, TSV or JSON file; its name is the file's without the suffix.

    Raises:
        InputError: the file is missing, empty, has other columns, or has an empty or repeated pair.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no relation file: its name ends in {', '.join(SUFFIXES)}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InputError(f"Cannot read the relation {path}: {reason}.") from error
    if path.suffix.lower() == ".json":
        pairs = _check_pairs(_json_rows(path, text), str(path), "pair")
    else:
        pairs = _check_pairs(_table_rows(path, text), str(path), "row")
    return Relation(path.stem, "user", path.name, pairs)


def open_relation(relation: Any) -> Relation:
    """A `Relation` from a name, a file, a list of pairs, or a `Relation` itself.

    Args:
        relation: one of `relation_names()`, the path of a file (`read_relation`), or a list of
            (source, target), both words or both token ids.

    Raises:
        InputError: no such name or file, or pairs that cannot be used.
    """
    if isinstance(relation, Relation):
        return relation
    if isinstance(relation, str) and relation in relation_names():
        return _RULES[relation]() if relation in _RULES else _table(relation)
    if isinstance(relation, str | Path):
        if Path(relation).suffix.lower() in SUFFIXES or Path(relation).exists():
            return read_relation(relation)
        raise InputError(
            f'There is no relation "{relation}": name a .csv, .tsv or .json file, or one of '
            f"{', '.join(relation_names())}."
        )
    rows = [(n, _plain(pair)) for n, pair in enumerate(relation, 1)]
    return Relation("pairs", "user", "given by the program", _check_pairs(rows, "The list", "pair"))


def _plain(pair: Any) -> Any:
    """Numpy and torch integers as ints, so that they are taken for token ids."""
    if isinstance(pair, str) or not isinstance(pair, Iterable):
        return pair
    return [x.__index__() if hasattr(x, "__index__") else x for x in pair]
