"""A model from a bundled name, a hub id or a folder, with its tokenizer and fingerprint.

Weights are used as stored: no LayerNorm folding, no centring.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, StrictDataclassError
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from saekit.bundled import bundled
from saekit.errors import InputError, MismatchError, ModelError, check_fingerprint
from saekit.model.decoder import Decoder
from saekit.model.devices import check_device
from saekit.model.families import gpt2, llama
from saekit.model.fetching import PACKAGES, fetched
from saekit.model.gating import gate_bias, install
from saekit.model.gguf import converted
from saekit.model.silence import quiet

BUNDLED_MODELS = {"gpt2-mini": "dictionaries/gpt2-mini/model"}
HUB_ALIASES = {"gpt2-small": "gpt2"}
FAMILIES: dict[str, Any] = {"gpt2": gpt2, "llama": llama, "mistral": llama, "qwen2": llama}
"""`model_type` of a config -> the module that describes such models."""
HUB_FILES = [
    "config.json", "model*.safetensors", "model.safetensors.index.json",
    "tokenizer*", "vocab.json", "merges.txt", "special_tokens_map.json", "added_tokens.json",
]  # fmt: skip


@dataclass
class LanguageModel:
    """A model with what saekit needs beside the weights.

    Attributes:
        id: as the user named it (stored in every artefact).
        hf: the `transformers` model, in evaluation mode.
        tokenizer: the `transformers` tokenizer.
        prepend_bos: whether texts are read with BOS in front (position 0).
    """

    id: str
    hf: PreTrainedModel
    tokenizer: Any
    prepend_bos: bool = True

    @property
    def n_layers(self) -> int:
        return self.hf.config.num_hidden_layers

    @property
    def n_heads(self) -> int:
        return self.hf.config.num_attention_heads

    @property
    def d_model(self) -> int:
        return self.hf.config.hidden_size

    @property
    def d_head(self) -> int:
        return getattr(self.hf.config, "head_dim", None) or self.d_model // self.n_heads

    @property
    def n_ctx(self) -> int:
        return self.hf.config.max_position_embeddings

    @property
    def d_vocab(self) -> int:
        return self.hf.config.vocab_size

    @property
    def device(self) -> torch.device:
        return next(self.hf.parameters()).device

    @property
    def bos(self) -> int:
        return self.tokenizer.bos_token_id

    @property
    def gate_bias(self) -> Float[Tensor, "layer head"] | None:
        """Of a model with gated attention (`saekit.model.gating`); None where it is dense."""
        return gate_bias(self.hf.config, self.id)

    @cached_property
    def decoder(self) -> Decoder:
        """What the model is, in the words that all forward passes read; its tensors are the
        model's own, so that weights changed in place are seen."""
        return FAMILIES[self.hf.config.model_type].decoder(self.hf)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, shapes and float32 values of all weights, sorted by name.

        What else changes the function comes first: the gate biases of a gated model, and what its
        config says beyond the default; an unembedding that is not the embedding is one more weight.
        """
        digest = hashlib.sha256()
        family = FAMILIES[self.hf.config.model_type]
        for text in family.beyond_the_weights(self.hf):
            digest.update(text.encode())
        tied = family.is_tied(self.hf)
        if (bias := self.gate_bias) is not None:
            digest.update(f"gate_bias{tuple(bias.shape)}".encode())
            digest.update(bias.numpy().tobytes())
        for name, value in sorted(self.hf.state_dict().items()):
            if name == "lm_head.weight" and tied:
                continue
            value = value.detach().to("cpu", torch.float32).contiguous()
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def vocabulary(self) -> list[str]:
        """The text of every token id."""
        return [self.tokenizer.decode([token]) for token in range(self.d_vocab)]

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, without BOS."""
        return self.tokenizer.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Token ids of many texts, without BOS."""
        return self.tokenizer(texts, add_special_tokens=False)["input_ids"]

    def prompt(self, text: str) -> Int[Tensor, " pos"]:
        """Token ids of a prompt, BOS in front if `prepend_bos`.

        Raises:
            InputError: the prompt is empty or longer than the context.
        """
        ids = self.tokens(text)
        if not ids or not text.strip():
            raise InputError("The prompt is empty: give at least one word.")
        limit = self.n_ctx - self.prepend_bos
        if len(ids) > limit:
            raise InputError(
                f"The prompt has {len(ids)} tokens; {self.id} reads at most {limit}: shorten it."
            )
        return torch.tensor([self.bos] * self.prepend_bos + ids, device=self.device)

    def token_strings(self, ids: Sequence[int]) -> list[str]:
        """The text of each token."""
        return [self.vocabulary[int(token)] for token in ids]

    def single_token(self, text: str) -> int:
        """The id of a text that is exactly one token.

        Raises:
            InputError: it is several tokens (they are named).
        """
        ids = self.tokens(text)
        if len(ids) != 1:
            pieces = ", ".join(f'"{piece}"' for piece in self.token_strings(ids))
            raise InputError(f'"{text}" is not one token of {self.id} but {len(ids)}: {pieces}.')
        return ids[0]

    def check_made_with(
        self,
        what: str,
        model: str,
        fingerprint: str,
        prepend_bos: bool | None = None,
        cure: str = "",
    ) -> None:
        """Refuse what was made with another model, or with this one read in another way.

        Args:
            what: with its verb, such as "The stored means belong".
            model, fingerprint, prepend_bos: what it says of its model; None is not compared.
            cure: what to do, a sentence.

        Raises:
            MismatchError: with both fingerprints, or both ways to read it.
        """
        own = f'"{self.id}"', self.fingerprint
        check_fingerprint(what, (model, fingerprint), own, cure)
        if prepend_bos not in (None, self.prepend_bos):
            raise MismatchError(
                f"{what} to a model that is read with prepend_bos={prepend_bos}; "
                f"{own[0]} is read with prepend_bos={self.prepend_bos}. {cure}".rstrip()
            )

    @torch.no_grad()
    def probabilities(self, ids: Int[Tensor, " pos"]) -> Float[Tensor, " d_vocab"]:
        """Next-token probabilities after the last position."""
        return self.hf(ids[None]).logits[0, -1].float().softmax(-1)


def _folder(model_id: str) -> str:
    """The folder on this disk that holds a model: bundled, given, fetched, converted from a GGUF
    file, or downloaded from the hub.

    The hub is asked once and here only (`transformers` would ask it for each file and repeat
    every failed request for half a minute); a model downloaded earlier is found without a network.
    """
    if Path(model_id).expanduser().is_dir():
        return str(Path(model_id).expanduser())
    if model_id in BUNDLED_MODELS:
        return str(bundled(BUNDLED_MODELS[model_id]))
    if model_id in PACKAGES:
        return str(fetched(model_id))
    if Path(model_id).suffix == ".gguf" and Path(model_id).expanduser().is_file():
        return str(converted(Path(model_id).expanduser()))
    if Path(model_id).exists() or model_id.startswith((".", "/", "~")):
        raise ModelError(f"{model_id} is not a model folder.")
    try:
        return snapshot_download(HUB_ALIASES.get(model_id, model_id), allow_patterns=HUB_FILES)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise ModelError(
            f'Model "{model_id}" is neither bundled nor a folder, and the hub gave no such model '
            "(offline, or no such id): use gpt2-mini or the path of a local folder."
        ) from error


LoadableModel = str | LanguageModel | PreTrainedModel


def check_family(config: Any, name: str) -> None:
    """Refuse a model that saekit cannot describe exactly.

    Raises:
        ModelError: another family (the known ones are named), or a field of its config.
    """
    if config.model_type not in FAMILIES:
        raise ModelError(
            f'"{name}" is a {config.model_type}; saekit reads {", ".join(FAMILIES)} models.'
        )
    FAMILIES[config.model_type].check(config, name)


def load_model(
    id: LoadableModel = "gpt2-mini",
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    prepend_bos: bool = True,
) -> LanguageModel:
    """Open a model: `gpt2-mini` (bundled), `smollm2` (after `saekit fetch smollm2`), a folder in
    Hugging Face form, a GGUF file, or a hub id (`gpt2`).

    A `LanguageModel` is returned as it is; a loaded `transformers` model is wrapped (its tokenizer
    is opened from where the model came from).

    Raises:
        ModelError: unknown name, unreachable hub, another family, missing or truncated weights.
        InputError: a device that this machine or this torch does not have.
    """
    if isinstance(id, LanguageModel):
        return id
    if isinstance(id, PreTrainedModel):
        source = id.config._name_or_path
        check_family(id.config, source or "the model")
        install(id)
        return LanguageModel(source, id.eval(), _open_tokenizer(_folder(source)), prepend_bos)
    check_device(device)
    path = _folder(id)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    except StrictDataclassError as error:  # a field of another type
        reason = str(error).strip().splitlines()[-1].strip().rstrip(".")
        raise ModelError(f"The config.json of {path} cannot be read ({reason}).") from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"{path} is not a model folder: no config.json that transformers reads."
        ) from error
    check_family(config, str(id))
    hf = _open_weights(path, dtype)
    install(hf)
    tokenizer = _open_tokenizer(path)
    if len(tokenizer) > config.vocab_size:
        raise ModelError(
            f"The tokenizer of {path} has {len(tokenizer)} tokens, the model {config.vocab_size}."
        )
    return LanguageModel(id, hf.eval().to(device), tokenizer, prepend_bos)  # pyright: ignore[reportArgumentType]


def _open_weights(path: str, dtype: torch.dtype) -> PreTrainedModel:
    try:
        with quiet():
            opened: Any = AutoModelForCausalLM.from_pretrained(
                path, dtype=dtype, local_files_only=True, use_safetensors=True,
                output_loading_info=True,
            )  # fmt: skip
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise ModelError(f"The weights of {path} cannot be read ({reason}).") from error
    hf, report = opened
    if missing := sorted(report["missing_keys"]):  # transformers would fill them at random
        raise ModelError(
            f"The weights of {path} are incomplete: {len(missing)} are missing, first {missing[0]}."
        )
    return hf


def _open_tokenizer(path: str) -> Any:
    # without these files transformers makes up an empty tokenizer
    if not any((Path(path) / name).exists() for name in ("tokenizer.json", "vocab.json")):
        raise ModelError(f"{path} holds no tokenizer (tokenizer.json, or vocab.json and merges).")
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{path} holds no tokenizer that transformers reads.") from error
    if tokenizer.bos_token_id is None:
        raise ModelError(f"The tokenizer of {path} has no beginning-of-sequence token.")
    return tokenizer
