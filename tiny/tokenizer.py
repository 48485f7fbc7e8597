"""Trains the tiny model's tokenizer: byte-level BPE with LFM2-VL's special tokens and chat template.

In: the pretraining texts. Out: a `Tokenizer` whose folder transformers' AutoTokenizer loads. Called by pretraining.
"""

from __future__ import annotations

from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors, trainers

from vlmtune.text.defaults import CHAT_TEMPLATE
from vlmtune.text.tokenizer import Tokenizer

# The order gives the ids: <|pad|> is 0, <|startoftext|> 1, <|endoftext|> 2 as in LFM2's own vocabulary.
SPECIAL_TOKENS = (
    "<|pad|>",
    "<|startoftext|>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<image>",
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
)

# LFM2's pattern (that of Llama 3), except that every digit is a token of its own: counting and copying numbers is
# easier for a small model. A newline never joins the word after it, so an answer's tokens are those of a listed label.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int = 1024, max_tile_grid: int = 0) -> Tokenizer:
    """Train on texts; the same texts in the same order give the same tokenizer.

    Args:
        texts: what the model will read and write, as plain text.
        vocab_size: tokens in all: special tokens, 256 bytes, merges. Fewer if the texts have too few words.
        max_tile_grid: `<|img_row_r_col_c|>` tokens for grids up to this many rows and columns. 0 for a model that
            never cuts an image into tiles, like the built-in one: each would cost an embedding and never be trained.

    Raises:
        ValueError: if the vocabulary cannot hold the special tokens and the 256 bytes.
    """
    grid = range(1, max_tile_grid + 1)
    special = [*SPECIAL_TOKENS, *(f"<|img_row_{row}_col_{column}|>" for row in grid for column in grid)]
    if vocab_size < len(special) + 256:
        raise ValueError(f"vocab_size {vocab_size} is less than {len(special)} special tokens and 256 bytes")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A", special_tokens=[("<|startoftext|>", special.index("<|startoftext|>"))]
    )
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|pad|>",
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
        "extra_special_tokens": {
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail_token": "<|img_thumbnail|>",
        },
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    return Tokenizer(backend, config, CHAT_TEMPLATE, "trained tokenizer")
