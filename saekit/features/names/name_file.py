"""`names.h5`: what features are called, why, and how well that holds.  numpy and h5py only.

Layout (schema_version 1; L layers, F = d_sae features, as in the index beside it):

    attributes       format, schema_version, saekit, model, fingerprint, dictionaries [L],
                     layers [L], sizes [L], labeller ("rules" or whose names these are), text (what
                     was scored on, in words), n_tokens (of both scoring halves), summary (JSON:
                     per kind how many, mean scores, mean nulls)
    texts/           bytes uint8 (UTF-8 of every distinct name, joined), offsets uint32
    features/        number [L, F] (of the name's text, from 1; 0: no name), kind uint8 (place in
                     `KINDS`), rule uint8 (place in `RULES`), share and lift float16 (evidence; see
                     rules.py), rise float16 (NaN: not measured), and as 200ths of
                     1, 255 where not measured: detection, fuzzing, precision, recall, f1, auroc,
                     null_detection, null_fuzzing, chosen_detection, rise_rank
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float, Int, UInt8

from saekit.coordinates import feature_name
from saekit.errors import FormatError, MismatchError
from saekit.features.fingerprint import check_dictionaries
from saekit.features.index.index_file import IndexFile
from saekit.features.records import FeatureName, NameScores
from saekit.files import write_bytes
from saekit.h5 import BROKEN, open_h5
from saekit.version import __version__
from saekit.wording import number, percent

FORMAT, SCHEMA_VERSION, NAMES = "saekit feature names", 1, "names.h5"
KINDS = ("", "input", "class", "output", "context", "text")
RULES = (
    "", "current word", "class", "next word", "promoted twice", "context", "labeller", "withdrawn",
)  # fmt: skip
_WITHOUT_FIGURES = ("", "labeller", "withdrawn")
SHARES = (
    "detection", "fuzzing", "precision", "recall", "f1", "auroc", "null_detection",
    "null_fuzzing", "chosen_detection", "rise_rank",
)  # fmt: skip
_STEPS, _MISSING = 200, 255
_COLUMNS = ("number", "kind", "rule", "share", "lift", "rise", *SHARES)
GOOD = 0.9  # detection from which a name is called reliable


@dataclass
class LayerNames:
    """The names of one layer while they are made; every column has d_sae entries.

    Attributes:
        text: "" without a name.
        kind, rule: places in `KINDS` and `RULES`.
        share, lift: evidence.
        scores: columns of `SHARES` and "rise"; NaN where not measured.
        others: feature -> further names (arguments of `set`) in the order in which rules gave them.
    """

    text: list[str]
    kind: UInt8[np.ndarray, " d_sae"]
    rule: UInt8[np.ndarray, " d_sae"]
    share: Float[np.ndarray, " d_sae"]
    lift: Float[np.ndarray, " d_sae"]
    scores: dict[str, Float[np.ndarray, " d_sae"]] = field(default_factory=dict)
    others: dict[int, list[tuple[str, str, str, float, float]]] = field(default_factory=dict)

    @classmethod
    def empty(cls, d_sae: int) -> "LayerNames":
        kind, rule = np.zeros((2, d_sae), np.uint8)
        share, lift = np.zeros((2, d_sae))
        scores = {name: np.full(d_sae, np.nan) for name in (*SHARES, "rise")}
        return cls([""] * d_sae, kind, rule, share, lift, scores)

    def set(self, feature: int, text: str, kind: str, rule: str, share: float, lift: float) -> None:
        """Give one feature a name."""
        self.text[feature] = text
        self.kind[feature], self.rule[feature] = KINDS.index(kind), RULES.index(rule)
        self.share[feature], self.lift[feature] = share, lift

    def next_name(self, feature: int) -> bool:
        """Withdraw a name and take the next one that a rule gave; False if there is none."""
        waiting = self.others.get(feature)
        if not waiting:
            self.set(feature, "", "", "withdrawn", 0, 0)
            return False
        self.set(feature, *waiting.pop(0))
        return True


def _evidence(rule: str, share: float, lift: float) -> dict[str, float]:
    if rule == "promoted twice":
        return {"logit": float(share)}
    return (
        {"share": float(share), "lift": float(lift)}
        if rule not in ("", "labeller", "withdrawn")
        else {}
    )


def _sentence(rule: str, share: float, lift: float) -> str:
    """Why a feature has its name."""
    figures = f"({percent(share)} of its activation, {number(lift)} times its share of the text)"
    return {
        "current word": f"the token it fires on is this word {figures}",
        "class": f"the token it fires on is one of these {figures}",
        "next word": f"the next token is this word {figures}",
        "promoted twice": "two forms of this word are among the ten tokens it promotes most "
        f"({number(share)} logit per unit)",
        "context": f"these words come before ({percent(share)} of its examples, {number(lift)} "
        "times as often as elsewhere)",
        "labeller": "given by a labeller",
        "withdrawn": "what the rules gave did no better on other text than any other name",
    }.get(rule, "no rule holds")


def write_names(path: Path, index: IndexFile, layers: list[LayerNames], **about: Any) -> None:
    """Write `names.h5` atomically.

    Args:
        path: the file.
        index: what the names are for.
        layers: one per layer of the index.
        about: labeller, text, n_tokens, summary.
    """
    texts = sorted({text for layer in layers for text in layer.text if text})
    place = {text: n for n, text in enumerate(texts, 1)} | {"": 0}
    encoded = [text.encode() for text in texts]
    options: Any = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
    # from version 1.10 on the format has checksums; damage in an older one can crash HDF5
    with h5py.File(
        "names", "w", driver="core", backing_store=False, libver=("v110", "v110")
    ) as file:
        file.attrs.update(
            {
                "format": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "saekit": __version__,
                "model": index.model,
                "fingerprint": index.fingerprint,
                "dictionaries": index.dictionaries,
                "layers": index.layers,
                "sizes": index.sizes,
                **{k: json.dumps(v) if isinstance(v, dict) else v for k, v in about.items()},
            }
        )
        file.create_dataset("texts/bytes", data=np.frombuffer(b"".join(encoded), np.uint8))
        offsets = np.cumsum([0, *map(len, encoded)]).astype(np.uint32)
        file.create_dataset("texts/offsets", data=offsets, **options)
        columns: dict[str, list[np.ndarray]] = {}
        for layer in layers:
            for name, column in _columns(layer, place).items():
                padded = np.zeros(index.d_sae, column.dtype)
                padded[: len(column)] = column
                columns.setdefault(name, []).append(padded)
        for name, parts in columns.items():
            array = np.stack(parts)
            file.create_dataset(
                f"features/{name}", data=array, chunks=(1, array.shape[1]), **options
            )
        file.flush()
        write_bytes(path, file.id.get_file_image())


def _columns(layer: LayerNames, place: dict[str, int]) -> dict[str, np.ndarray]:
    columns = {
        "number": np.array([place[text] for text in layer.text], np.uint32),
        "kind": layer.kind,
        "rule": layer.rule,
        "share": layer.share.astype(np.float16),
        "lift": np.minimum(layer.lift, 6e4).astype(np.float16),
        "rise": layer.scores["rise"].astype(np.float16),
    }
    for name in SHARES:
        value = layer.scores[name]
        steps = np.where(np.isnan(value), _MISSING, np.rint(np.nan_to_num(value) * _STEPS))
        columns[name] = steps.astype(np.uint8)
    return columns


class FeatureNames:
    """An open file of names, read into memory.

    Attributes:
        texts: every name once, from place 1 (place 0 is "").
        labeller, text, n_tokens, summary: see the layout.
    """

    def __init__(self, path: Path, file: h5py.File):
        attributes: dict[str, Any] = dict(file.attrs)
        if attributes.get("format") != FORMAT:
            raise FormatError(f"{path} is not a file of names. Make it: saekit names {path.parent}")
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise FormatError(
                f"{path} has schema_version {attributes.get('schema_version')}; this saekit reads "
                f"version {SCHEMA_VERSION}. Make it again: saekit names {path.parent}"
            )
        self.path = path
        self.layers = [int(layer) for layer in attributes["layers"]]
        self.sizes = [int(size) for size in attributes["sizes"]]
        self.dictionaries = [str(text) for text in attributes["dictionaries"]]
        self.labeller, self.text = str(attributes["labeller"]), str(attributes["text"])
        self.n_tokens = int(attributes["n_tokens"])
        self.summary: dict[str, Any] = json.loads(attributes["summary"])
        data = file["texts/bytes"][:].tobytes()  # type: ignore[index]
        offsets = file["texts/offsets"][:].tolist()  # type: ignore[index]
        bounds = zip(offsets[:-1], offsets[1:], strict=True)
        self.texts = ["", *(data[start:end].decode() for start, end in bounds)]
        read: Any = file  # a group or a dataset, as far as types know
        self._columns: dict[str, np.ndarray] = {n: read[f"features/{n}"][:] for n in _COLUMNS}
        shape = (len(self.layers), max(self.sizes))
        if any(column.shape != shape for column in self._columns.values()):
            raise ValueError("columns of another shape")

    @classmethod
    def read(cls, path: Path) -> "FeatureNames":
        """Read names, for whatever dictionaries they are.

        Raises:
            FormatError: truncated, not a file of names, or of an unknown version.
        """
        cure = f"Make it again: saekit names {path.parent}"
        with open_h5(path, "file of names", cure) as file:
            try:
                return cls(path, file)
            except (KeyError, *BROKEN) as error:
                raise FormatError(f"{path} is damaged ({error}). {cure}") from error

    @classmethod
    def open(cls, path: Path, index: IndexFile) -> "FeatureNames":
        """Read the names of an index.

        Raises:
            FormatError: as `read`.
            MismatchError: they are for other dictionaries than the index.
        """
        names = cls.read(path)
        names.check_dictionaries(
            dict(zip(index.layers, index.dictionaries, strict=True)), index.path
        )
        if missing := sorted(set(index.layers) - set(names.layers)):
            raise MismatchError(
                f"{path} has no names for layer {missing[0]} of {index.path}. {names.cure}"
            )
        return names

    @property
    def cure(self) -> str:
        """What to do about names that cannot be used."""
        return f"Make it again: saekit names {self.path.parent}"

    def check_dictionaries(self, found: Mapping[int, str | None], where: Path) -> None:
        """Refuse names of other dictionaries.

        Args:
            found: layer -> fingerprint of its dictionary; None is not compared.
            where: where those are.

        Raises:
            MismatchError: a layer that differs.
        """
        own = self.layers, self.dictionaries
        check_dictionaries(str(self.path), own, found, str(where), self.cure)

    def column(self, name: str) -> Float[np.ndarray, "layer d_sae"]:
        """One of `SHARES`, or "rise", of all features; NaN where not measured."""
        stored = self._columns[name]
        if name == "rise":
            return stored.astype(np.float64)
        return np.where(stored == _MISSING, np.nan, stored / _STEPS)

    @property
    def numbers(self) -> Int[np.ndarray, "layer d_sae"]:
        """Place of each feature's name in `texts`; 0 without a name."""
        return self._columns["number"].astype(np.int64)

    @property
    def kinds(self) -> UInt8[np.ndarray, "layer d_sae"]:
        """Place of each feature's kind in `KINDS`."""
        return self._columns["kind"]

    def get(self, layer: int, feature: int) -> FeatureName:
        """The name of one feature of a layer of the index."""
        at = self.layers.index(layer), feature
        text = self.texts[int(self._columns["number"][at])]
        rule = RULES[self._columns["rule"][at]]
        share, lift = (float(self._columns[name][at]) for name in ("share", "lift"))
        return FeatureName(
            text or f"feature {feature_name(layer, feature)}",
            KINDS[self._columns["kind"][at]],
            _sentence(rule, share, lift),
            _evidence(rule, share, lift),
            NameScores(**{name: self._score(name, at) for name in (*SHARES, "rise")}),
        )

    def _score(self, name: str, at: tuple[int, int]) -> float | None:
        stored = self._columns[name][at]
        if name == "rise":
            return None if np.isnan(stored) else float(stored)
        return None if stored == _MISSING else float(stored) / _STEPS

    @cached_property
    def _places(self) -> dict[str, list[int]]:
        """Places of all texts that differ in nothing but capitals (free texts may have them)."""
        places: dict[str, list[int]] = {}
        for place, text in enumerate(self.texts[1:], 1):
            places.setdefault(text.strip().lower(), []).append(place)
        return places

    def named(self, text: str) -> Iterator[tuple[int, int]]:
        """The features (layer, feature) of a name, in any kind; in order of detection."""
        places = self._places.get(text.strip().lower(), [])
        slots, features = np.nonzero(np.isin(self._columns["number"], places))
        order = np.argsort(-np.nan_to_num(self.column("detection")[slots, features]), kind="stable")
        for slot, feature in zip(slots[order].tolist(), features[order].tolist(), strict=True):
            yield self.layers[slot], feature
