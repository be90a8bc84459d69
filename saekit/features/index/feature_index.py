"""Questions to a feature index: by token, by feature, by text.  numpy and h5py only.

Layout of `index.h5` (schema_version 3; L layers, F = d_sae features, V tokens, W = 24 tokens of a
window).  `share` datasets are float16 fractions of the feature's maximum, rounded to 0.4%.

    attributes       format, schema_version, saekit, model, fingerprint (of the model's weights),
                     dictionaries [L] (fingerprints, see fingerprint.py), layers [L],
                     d_sae, sizes [L] (features of each layer; rows beyond are zeros; without
                     it all have d_sae), classes (names of token classes), n_tokens (positions
                     counted, BOS excluded), bos, prepend_bos, promoted
    vocabulary/      bytes uint8 (UTF-8 texts of all tokens, joined), offsets uint32 [V + 1],
                     counts uint32 [V] (occurrences in the indexed text)
    features/        count uint32 [L, F], mean float32 [L, F], maximum float32 [L, F],
                     histogram uint32 [L, F, 50], log2_range int16 [L, F] (bins are equal, from 0
                     to 2**log2_range), token [L, F, 6] with token_count, token_mean (share) and
                     token_max (share): current tokens by total activation, count 0 where unused,
                     output_token [L, F, 15] and output_value float16 (rounded to 0.4%):
                     promoted (as many as the attribute says), then suppressed; as 255ths of the
                     total activation, each by a token that stands for its word
                     (`saekit.features.names.lexicons`): word [L, F, 1] with
                     word_share, before and after [L, F, 2] (words one position earlier and later)
                     with before_share and after_share; class [L, F] (from 1, in the attribute
                     classes; 0: none) with class_share; entropy [L, F] (of the words, normalised);
                     same_layer and next_layer [L, F, 2] with same_correlation and
                     next_correlation (255ths; 0 where unused)
    examples/        strongest places, strongest first:
                     row int32 [L, F, N] (in `contexts`, -1 where unused), place uint16 [L, F, N],
                     value (share) [L, F, N], window uint8 [L, F, N, W] (activations around the
                     place, 255ths of the maximum, rounded up)
    samples/         the same for places drawn at random among the active ones, one from each of
                     as many quantile ranges
    contexts         token ids [rows, context], the text that examples point into
    tokens/          start int64 [V + 1]; entries start[t]:start[t + 1] belong to token t, by layer
                     and falling purity: layer uint8 (its place in `layers`), feature, count
                     uint32, mean (share), max (share).  Listed are, per layer, of the features
                     that fire on at least 10% of the token's positions and at least twice, the
                     first 5 by every rank of token_search.py, and up to 10 by purity
                     that have at least 1% of their total activation there.  In version 2: up to
                     20 by purity, and no other ranks

Names and their scores are beside it, in `names.h5` (`saekit.features.names.name_file`).
Arrays are chunked by 128 features and compressed, so a feature or a token is read in milliseconds.
"""

from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from saekit.coordinates import feature_name
from saekit.errors import InputError
from saekit.features.index.index_file import AFTER, BEFORE, MIN_SHARE, IndexFile
from saekit.features.index.token_search import RANKS as RANKS
from saekit.features.index.token_search import search
from saekit.features.names.lexicons import CLASSES
from saekit.features.names.name_file import NAMES, FeatureNames
from saekit.features.records import (
    Example,
    FeatureRecord,
    OutputToken,
    Relative,
    TextFeatures,
    TokenHit,
    TokenStatistic,
    WordShare,
)

if TYPE_CHECKING:
    from saekit.model.loading import LanguageModel
    from saekit.sae.storage.dictionary_set import DictionarySet


class FeatureIndex(IndexFile):
    """An open index (see `IndexFile` for its attributes and `open`).

    Example:
        >>> with FeatureIndex.open("dictionaries/gpt2-mini") as index:
        ...     [hit.name for hit in index.by_token(" large", top=2)]
        ['2/3166', '0/3396']
    """

    def by_token(
        self,
        token: str | int,
        layers: Iterable[int] | None = None,
        top: int = 20,
        rank: str = "match",
        max_density: float | None = None,
        min_share: float = MIN_SHARE,
    ) -> list[TokenHit]:
        """The features that fire on a token, best first.

        Args:
            token: `"large"` asks for "large" and " large", `" large"` only for itself; or an id.
            layers: only these.
            top: how many, at least 1.
            rank: one of `RANKS` (see token_search.py); by default how exclusively
                and how reliably the feature is one of this token.
            max_density: leave out features that fire more often than this in general.
            min_share: leave out features active on a smaller share of the token's positions
                (below 0.1 nothing is stored).

        Raises:
            InputError: not a token, a layer that is not in the index, an unknown rank, or a limit
                out of range.
        """
        return search(self, token, layers, top, rank, max_density, min_share)

    def feature(self, layer: int, feature: int, label: str | None = None) -> FeatureRecord:
        """Everything about one feature.

        Raises:
            InputError: no such layer or feature in the index.
        """
        at = self._place(layer, feature)
        count = int(self.summary["count"][at])
        maximum = float(self.summary["maximum"][at])
        histogram = self.read("features/histogram", *at).astype(np.int64)
        width = 2.0 ** int(self.read("features/log2_range", *at)) / len(histogram)
        output = [
            OutputToken(self.vocabulary[token], int(token), float(value))
            for token, value in zip(
                self.read("features/output_token", *at),
                self.read("features/output_value", *at),
                strict=True,
            )
        ]
        return FeatureRecord(
            layer=layer,
            feature=feature,
            count=count,
            density=count / self.n_tokens,
            mean=float(self.summary["mean"][at]),
            max=maximum,
            histogram=histogram,
            edges=width * np.arange(len(histogram) + 1),
            examples=self._examples("examples", at, maximum),
            samples=self._examples("samples", at, maximum),
            top_tokens=self._top_tokens(at, maximum),
            output_top=output[: self.n_promoted],
            output_bottom=output[self.n_promoted :],
            label=label,
            **self._words(at),
            same_layer=self._relatives("same", at),
            next_layer=self._relatives("next", at),
            naming=self.names.get(layer, feature) if self.names else None,
        )

    @cached_property
    def names(self) -> FeatureNames | None:
        """The names of the features, if they were made.

        Raises:
            FormatError: the file of names is broken.
            MismatchError: it belongs to another index.
        """
        path = self.path.parent / NAMES
        return FeatureNames.open(path, self) if path.is_file() else None

    def _words(self, at: tuple[int, int]) -> dict[str, Any]:
        """The word statistics of one feature."""

        def lifted(text: str, share: float, occurrences: int) -> WordShare:
            return WordShare(text, share, share * self.n_tokens / max(1, occurrences))

        columns: dict[str, list[WordShare]] = {}
        for name in ("word", "before", "after"):
            tokens = self.read(f"features/{name}", *at).tolist()
            shares = (self.read(f"features/{name}_share", *at) / 255).tolist()
            numbers = self.words_of_text.of_token[tokens].tolist()
            columns[name] = [
                lifted(self.words_of_text.texts[n], share, int(self.word_counts[n]))
                for n, share in zip(numbers, shares, strict=True)
                if share > 0
            ]
        number, share = (int(self.read(f"features/{n}", *at)) for n in ("class", "class_share"))
        name = self.classes[number - 1] if number else ""
        known = name in CLASSES  # a class that a later version of saekit dropped is not
        count = int(self.token_counts[self.words_of_text.members(name)].sum()) if known else 0
        return {
            **columns,
            "word": columns["word"][0] if columns["word"] else None,
            "token_class": lifted(name, share / 255, count) if number else None,
            "entropy": int(self.read("features/entropy", *at)) / 255,
        }

    def _relatives(self, which: str, at: tuple[int, int]) -> list[Relative]:
        layer = at[0] + (which == "next")
        if layer == len(self.layers):
            return []
        features = self.read(f"features/{which}_layer", *at).tolist()
        correlations = (self.read(f"features/{which}_correlation", *at) / 255).tolist()
        pairs = zip(features, correlations, strict=True)
        return [Relative(self.layers[layer], f, round(r, 3)) for f, r in pairs if r > 0]

    def top_example(self, layer: int, feature: int, token: int | None = None) -> Example | None:
        """The strongest stored example of a feature, where possible one on the token `token`.

        None if the feature never was active.
        """
        at = self._place(layer, feature)
        maximum = float(self.summary["maximum"][at])
        if token is None:
            return next(iter(self._examples("examples", at, maximum, limit=1)), None)
        stored = self._examples("examples", at, maximum) + self._examples("samples", at, maximum)
        on_token = (example for example in stored if example.token_id == token)
        return next(on_token, stored[0] if stored else None)

    def _place(self, layer: int, feature: int) -> tuple[int, int]:
        slot = self.slot(layer)
        if not 0 <= feature < self.sizes[slot]:
            raise InputError(
                f"Feature {feature_name(layer, feature)} does not exist: layer {layer} has "
                f"features 0 to {self.sizes[slot] - 1}."
            )
        return slot, feature

    def _top_tokens(self, at: tuple[int, int], maximum: float) -> list[TokenStatistic]:
        columns = [
            self.read(f"features/{name}", *at)
            for name in ("token", "token_count", "token_mean", "token_max")
        ]
        return [
            TokenStatistic(
                self.vocabulary[token], int(token), int(count), float(mean) * maximum,
                float(largest) * maximum,
            )
            for token, count, mean, largest in zip(*columns, strict=True)
            if count
        ]  # fmt: skip

    def _examples(
        self, group: str, at: tuple[int, int], maximum: float, limit: int | None = None
    ) -> list[Example]:
        columns = [
            self.read(f"{group}/{name}", *at, slice(limit))
            for name in ("row", "place", "value", "window")
        ]
        return [
            self._example(int(row), int(place), float(value) * maximum, window / 255 * maximum)
            for row, place, value, window in zip(*columns, strict=True)
            if row >= 0
        ]

    def _example(self, row: int, place: int, value: float, window: np.ndarray) -> Example:
        """The window of an example, cut where its document begins and ends."""
        context = self.read("contexts", row)
        ends = np.flatnonzero(context == self.bos)
        first = max(place - BEFORE, int(ends[ends < place].max(initial=-1)) + 1)
        last = min(place + AFTER + 1, int(ends[ends > place].min(initial=len(context))))
        ids = context[first:last].tolist()
        activations = window[first - place + BEFORE : last - place + BEFORE].tolist()
        activations[place - first] = value
        return Example(
            tokens=[self.vocabulary[token] for token in ids],
            token_ids=ids,
            activations=activations,
            position=place - first,
            value=value,
            context=row,
            place=place,
        )

    def by_text(
        self,
        model: "LanguageModel",
        dictionaries: "DictionarySet",
        text: str,
        top: int = 5,
        layers: Iterable[int] | None = None,
        max_density: float | None = None,
    ) -> TextFeatures:
        """The features active on a text, with what the index knows about them (loads torch).

        See `saekit.features.text_query.by_text`.
        """
        from saekit.features.text_query import by_text

        return by_text(model, dictionaries, text, top, layers, self, self.names, max_density)
