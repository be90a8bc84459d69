"""A tokenizer for models made in tests: one token per word of a fixed list."""

from saekit.model.loading import LanguageModel


class Words:
    """`" hot"` is one token; a word that is not in the list is two unknown ones."""

    bos_token_id = 0

    def __init__(self, size, words=()):
        self.words = {word: i + 1 for i, word in enumerate(words)}
        for i in range(len(self.words) + 1, size):
            self.words[f"w{i}"] = i
        self.texts = {i: f" {word}" for word, i in self.words.items()}

    def encode(self, text, add_special_tokens=False):
        ids = (self.words.get(word.strip('".,')) for word in text.split())
        return [part for i in ids for part in ([i] if i is not None else [1, 1])]

    def decode(self, ids):
        return "".join(self.texts.get(i, "<bos>") for i in ids)

    def __call__(self, texts, add_special_tokens=False):
        return {"input_ids": [self.encode(text) for text in texts]}


def with_words(hf, words=()):
    """A GPT-2 with that tokenizer."""
    return LanguageModel("made in a test", hf, Words(hf.config.vocab_size, words))
