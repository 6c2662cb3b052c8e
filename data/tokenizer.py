"""Tokenizers: a byte-level BPE trained on the corpus, an existing tokenizer, or one that the corpus brings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import InputError
from common.files import sha256_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
"""The special token of a trained BPE, id 0: it ends every document and starts every generation."""

MODEL_MAX_LENGTH = 1 << 20
"""The longest sequence the configuration allows: the model, not the tokenizer, knows its training length."""

_TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
_USUAL_END_TOKENS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>")


def tokenizer_identity(name: str | None, vocab_size: int | None) -> dict[str, Any]:
    """What determines the tokenizer besides the corpus, as JSON; InputError for a path without a tokenizer."""
    if name is None:
        return {"bpe": vocab_size}
    place = Path(name)
    if place.is_file():
        return {"files": {place.name: sha256_of(place)}}
    if place.is_dir():
        files = {name: sha256_of(place / name) for name in _TOKENIZER_FILES if (place / name).is_file()}
        if not files:
            raise InputError(f"data.tokenizer={name}: the folder holds no tokenizer.json")
        return {"files": files}
    if name.startswith((".", "/")) or name.endswith(".json") or name.count("/") > 1:
        raise InputError(f"data.tokenizer={name}: no such file or folder")
    return {"hub": name}


def train_bpe(documents: Iterator[str], vocab_size: int, *, progress: bool) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of exactly ``vocab_size`` tokens; any text survives encoding and decoding unchanged. Raises
    InputError if the documents hold too little text for so many tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=progress,
    )
    bpe.train_from_iterator(documents, trainer)
    if bpe.get_vocab_size() != vocab_size:
        raise InputError(
            f"data.vocab_size={vocab_size}: the corpus yields only {bpe.get_vocab_size()} tokens; lower it or add text"
        )
    return wrapped(bpe)


def wrapped(tokenizer: Tokenizer, **tokens: str) -> PreTrainedTokenizerFast:
    """A tokenizer of this project's in the transformers format; END_OF_TEXT begins and ends every text."""
    from transformers import PreTrainedTokenizerFast  # two seconds, needed by builds only

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        bos_token=END_OF_TEXT,
        model_max_length=MODEL_MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        **tokens,
    )


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder, a tokenizer.json or the hub, as it is. Raises InputError if there is none, it is not
    backed by the tokenizers library, or it has no end-of-text token."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = Path(name)
    if not place.exists():
        from .reachable import check_hub_reachable

        wanted = f"data.tokenizer={name}: no such file or folder, so a name on the hub"
        check_hub_reachable(wanted, "use a local folder or tokenizer.json")
    tokenizer: Any
    try:
        if place.is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place), model_max_length=MODEL_MAX_LENGTH)
        else:
            tokenizer = AutoTokenizer.from_pretrained(name, use_fast=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises the bare class
        raise InputError(f"data.tokenizer={name}: {' '.join(str(error).split())}") from None
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"data.tokenizer={name}: {type(tokenizer).__name__} has no tokenizer.json; convert it first")
    if tokenizer.eos_token_id is None:
        tokenizer.eos_token = next((token for token in _USUAL_END_TOKENS if token in tokenizer.get_vocab()), None)
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"data.tokenizer={name}: names no end-of-text token; give a folder whose tokenizer_config.json sets eos_token"
        )
    return tokenizer


def encoder_of(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """A tokenizer for corpus text: whole documents, in which the text of a special token is ordinary text."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True
    return encoder


def vocabulary_size(tokenizer: PreTrainedTokenizerFast) -> int:
    """Number of ids the tokenizer may return, added tokens and gaps included: the largest id plus one."""
    return max(tokenizer.get_vocab().values()) + 1


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """SHA-256 of the tokenizer's JSON: equal fingerprints encode equally."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
