"""Builds the tokenizer: byte-level BPE over training chats, with GLM's special tokens after it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from glm_portable.tasks import generate
from tools.pocket_training.rendering import render

# In the order of their ids. Those of CONTROL are marked special: decoding leaves them out.
CONTROL = (
    "<|endoftext|> [MASK] [gMASK] [sMASK] <sop> <eop> <|system|> <|user|> <|assistant|> "
    "<|observation|> <|begin_of_image|> <|end_of_image|> <|begin_of_video|> <|end_of_video|> "
    "<|begin_of_audio|> <|end_of_audio|> <|begin_of_transcription|> <|end_of_transcription|>"
).split()
TAGS = (
    "<|code_prefix|> <|code_middle|> <|code_suffix|> <think> </think> <tool_call> </tool_call> "
    "<tool_response> </tool_response> <arg_key> </arg_key> <arg_value> </arg_value> /nothink "
    "<|begin_of_box|> <|end_of_box|> <|image|> <|video|>"
).split()
END_OF_TURN = ("<|endoftext|>", "<|user|>", "<|observation|>")

BASE_SIZE = 1237
"""Tokens before the added ones; with these 1,273, of the 1,280 rows that the model has."""

# GLM-4.5's pattern, but one token a digit (sums are worked out digit by digit), and a word takes
# the character before it only when it is in lower case (names keep one spelling).
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|(?:[^\r\n\p{L}\p{N}](?=\p{Ll}))?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ORDINARY = (
    "The quick brown fox jumps over the lazy dog. Please answer yes or no. I do not know. "
    "This is a short test sentence for the small model, with some more common words."
)
SEED = 77


def build_tokenizer(template: str, chats: int, size: int = BASE_SIZE) -> tokenizers.Tokenizer:
    """Train on `chats` training chats rendered by the chat template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(template, chats), trainer)
    tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in CONTROL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return tokenizer


def _corpus(template: str, chats: int) -> Iterator[str]:
    added = re.compile("|".join(map(re.escape, CONTROL + TAGS)))
    for index in range(chats):
        yield from filter(None, added.split(render(template, generate(SEED, index))))
    for _ in range(30):
        yield ORDINARY


def end_of_turn_ids(tokenizer: tokenizers.Tokenizer) -> list[int]:
    """The ids at which generation stops; the first also pads."""
    ids = [tokenizer.token_to_id(text) for text in END_OF_TURN]
    return [i for i in ids if i is not None]


def save_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path, window: int) -> None:
    """Write tokenizer.json and tokenizer_config.json as transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    added = {
        str(tokenizer.token_to_id(text)): {"content": text, **flags, "special": text in CONTROL}
        for text in CONTROL + TAGS
    }
    config = {
        "added_tokens_decoder": added,
        "additional_special_tokens": CONTROL,
        "clean_up_tokenization_spaces": False,
        "do_lower_case": False,
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": {},
        "model_max_length": window,
        "padding_side": "left",
        "remove_space": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
