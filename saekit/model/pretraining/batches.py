"""What gpt2-mini is trained on: its tokenizer and its rows of tokens.

Half of each step is a corpus of files, half is generated relational English.  Rows are a pure
function of (config, block number, context), so that a resumed run continues exactly.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from tqdm.auto import tqdm

from saekit.files import atomic_path
from saekit.model.pretraining.recipe import PretrainConfig
from saekit.text import relational
from saekit.text.corpora import read_documents
from saekit.text.packing import encode_documents, pack
from saekit.text.tokenizer import BOS, train_tokenizer

BLOCK = 32  # steps drawn at once


def make_tokenizer(corpus: Sequence[Path], config: PretrainConfig) -> Tokenizer:
    """BPE over part of the corpus, generated text, and the relation words on their own.

    Each relation word and first name is repeated alone with and without its leading space, so
    that it becomes one token in both places ("large" in quotes, " large" in running text).
    """

    def stream():
        yield from islice(read_documents(corpus[:1]), 1500)
        yield from islice(relational.documents(seed=config.seed), 20_000)
        words, _ = relational.relation_words()
        alone = [f'"{word}" {word}' for word in words] + [f" {n}" for n in relational.first_names()]
        for _ in range(300):
            yield " ".join(alone)

    return train_tokenizer(stream(), config.vocabulary)


class Batches:
    """Rows of training tokens, a pure function of (config, block number, context)."""

    def __init__(self, corpus: np.ndarray, tokenizer: Tokenizer, config: PretrainConfig):
        self.corpus, self.tokenizer, self.config = corpus, tokenizer, config
        self.bos = tokenizer.encode(BOS).ids[0]
        self._orders: dict[tuple[int, ...], np.ndarray] = {}

    def _window_order(self, epoch: int, context: int) -> np.ndarray:
        key = (self.config.seed, 1, epoch, context)
        if key not in self._orders:
            windows = len(self.corpus) // (context - 1)
            self._orders = {key: np.random.default_rng(key).permutation(windows)}
        return self._orders[key]

    def _encode(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.tokenizer.encode_batch(texts, add_special_tokens=False)]

    def block(self, number: int, context: int) -> Tensor:
        """All rows of `BLOCK` steps: [BLOCK, batch, context]."""
        config = self.config
        batch = config.batch_tokens // context
        rows = np.empty((BLOCK * batch, context), dtype=np.int64)
        order = np.random.default_rng((config.seed, number)).permutation(len(rows))
        n_generated = round(len(rows) * config.generated_share)
        generated, natural = order[:n_generated], order[n_generated:]
        texts = relational.documents(seed=config.seed * 1_000_003 + number)
        packed = pack(texts, self._encode, context, self.bos, split=False)
        rows[generated] = list(islice(packed, n_generated))
        # each pass over the corpus visits its windows in a new random order
        width = context - 1
        first = number * len(natural)
        epochs, places = np.divmod(first + np.arange(len(natural)), len(self.corpus) // width)
        rows[natural, 0] = self.bos
        for row, epoch, place in zip(natural, epochs, places, strict=True):
            start = self._window_order(int(epoch), context)[place] * width
            rows[row, 1:] = self.corpus[start : start + width]
        return torch.from_numpy(rows).view(BLOCK, batch, context)


def corpus_tokens(corpus: Sequence[Path], tokenizer: Tokenizer, cache: Path) -> np.ndarray:
    """All token ids of a corpus, BOS before each document; read once, then kept in `cache`."""
    if not cache.exists():
        bos = tokenizer.encode(BOS).ids[0]

        def encode(texts: list[str]) -> list[list[int]]:
            return [e.ids for e in tokenizer.encode_batch(texts, add_special_tokens=False)]

        documents = tqdm(read_documents(corpus), desc="tokenising the corpus", unit=" documents")
        rows = encode_documents(documents, encode)
        ids = [np.array([bos, *row], dtype=np.uint16) for row in rows]
        with atomic_path(cache) as path, path.open("wb") as handle:
            np.save(handle, np.concatenate(ids))
    return np.load(cache, mmap_mode="r")
