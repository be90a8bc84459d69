"""Text that names are scored on: what is read, what the model says next, what every feature does.

Positions are those of packed rows, one after the other; a *passage* is `PASSAGE` of them in a row.
Activations are kept sparse: about tokens * layers * k * 8 bytes.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from jaxtyping import Int, Integer
from scipy.sparse import csc_array
from tqdm.auto import tqdm

from saekit.activations import Text, check_layers, context_rows, documents_of, residuals, unembed
from saekit.activations.sparse import SparseRows
from saekit.errors import InputError
from saekit.model.loading import LanguageModel
from saekit.sae.storage.dictionary_set import DictionarySet
from saekit.text.packing import Document
from saekit.text.parts import CHOOSE, REPORT, new_pieces, part_of

PASSAGE = 32  # tokens of a context in the field's detection scores
_CONTEXT = 128
_PASS_TOKENS = 2048


@dataclass
class HeldOut:
    """One part of the text.

    Attributes:
        rows: token ids as the model read them.
        tokens: the same as one array, -1 at BOS.
        predicted: the token that the model finds most likely next.
        layers: per layer, activations as a sparse [position, feature] matrix.
        passage: length of a passage; rows have a whole number of them.
    """

    rows: Integer[np.ndarray, "row context"]
    tokens: Int[np.ndarray, " position"]
    predicted: Int[np.ndarray, " position"]
    layers: dict[int, csc_array]
    passage: int

    @property
    def n_tokens(self) -> int:
        """Positions that count."""
        return int((self.tokens >= 0).sum())


class _Collected:
    """What was read of one part so far."""

    def __init__(self, sizes: dict[int, int]):
        self.rows: list[np.ndarray] = []
        self.predicted: list[np.ndarray] = []
        self.active = {layer: SparseRows() for layer in sizes}
        self.sizes, self.count = sizes, 0

    def add(
        self, model: LanguageModel, dictionaries: DictionarySet, ids: Integer[np.ndarray, "row pos"]
    ) -> int:
        """Run the model and all dictionaries; returns how many positions count."""
        tensor = torch.from_numpy(ids).long().to(model.device)
        wanted = check_layers(model, [*dictionaries.layers, model.n_layers])
        streams = dict(zip(wanted, residuals(model, tensor, wanted), strict=True))
        counted = (tensor != model.bos).flatten()
        for layer in dictionaries.layers:
            pairs = dictionaries[layer].encode_sparse(streams[layer].flatten(0, 1))
            self.active[layer].add(*pairs, counted)
        last = streams[model.n_layers].flatten(0, 1)
        next_token = [unembed(model, part).argmax(-1).cpu() for part in last.split(512)]
        self.predicted.append(torch.cat(next_token).numpy())
        self.rows.append(ids)
        new = int(counted.sum())
        self.count += new
        return new

    def finish(self, bos: int, passage: int) -> HeldOut:
        rows = np.concatenate(self.rows)
        tokens = rows.astype(np.int64).ravel()
        layers = {layer: part.matrix(self.sizes[layer]) for layer, part in self.active.items()}
        predicted = np.concatenate(self.predicted)
        return HeldOut(rows, np.where(tokens == bos, -1, tokens), predicted, layers, passage)


class _Dealt:
    """New pieces of text, dealt out to the two parts."""

    def __init__(self, documents: Iterable[Document]):
        self._stream = new_pieces(documents)
        self._waiting: dict[tuple[int, ...], deque[Document]] = {CHOOSE: deque(), REPORT: deque()}

    def read(self, part: tuple[int, ...]) -> Iterator[Document]:
        while True:
            while not self._waiting[part]:
                piece = next(self._stream, None)
                if piece is None:
                    return
                for wanted, waiting in self._waiting.items():
                    if part_of(piece) in wanted:
                        waiting.append(piece)
            yield self._waiting[part].popleft()


@torch.no_grad()
def read_held_out(
    model: LanguageModel, dictionaries: DictionarySet, documents: Text, tokens: int = 120_000
) -> tuple[HeldOut, HeldOut]:
    """The parts of a text on which names are chosen and reported, through all dictionaries.

    Args:
        model: the model.
        dictionaries: dictionaries of that model (checked).
        documents: text; only its parts `CHOOSE` and `REPORT` are read (`saekit.text.parts`), each
            piece once.
        tokens: positions to read in both together; less if the text ends first.

    Raises:
        InputError: a part has not one whole context.
        MismatchError: dictionaries of another model.
    """
    dictionaries.check_model(model)
    passage = min(PASSAGE, model.n_ctx)
    context = min(_CONTEXT, model.n_ctx) // passage * passage
    source = _Dealt(documents_of(documents))
    sizes = {layer: dictionaries[layer].d_sae for layer in dictionaries.layers}
    parts = {part: _Collected(sizes) for part in (CHOOSE, REPORT)}
    rows = {part: context_rows(model, source.read(part), context) for part in parts}
    with tqdm(total=tokens, desc="reading held-out text", unit=" tokens", unit_scale=True) as bar:
        waiting = deque(parts)
        while waiting:
            part = waiting.popleft()
            enough = parts[part].count >= tokens / 2
            batch = [] if enough else list(islice(rows[part], max(1, _PASS_TOKENS // context)))
            if batch:
                bar.update(parts[part].add(model, dictionaries, np.stack(batch)))
                waiting.append(part)
    if not all(part.count for part in parts.values()):
        raise InputError(
            "The text is too short to score names: a quarter of it is kept for choosing and a "
            f"quarter for reporting, and each needs a context of {context} tokens."
        )
    choose, report = (part.finish(model.bos, passage) for part in parts.values())
    return choose, report
