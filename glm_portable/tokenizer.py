"""Text to token ids and back, over the checkpoint's own `tokenizer.json`.

Two kinds of added token are kept apart. Control tokens (`<|user|>`, `[gMASK]`, end of text and
whatever else the file marks special) steer the model: `encode` never produces them, however a user
types them, and `decode` leaves them out. Tags (`<think>`, `</tool_call>`, `/nothink`) are part of
the text in both directions.
"""

import codecs
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.decoders import ByteLevel

from glm_portable import text_cuts
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError

_CONTROL = frozenset(
    "[MASK] [gMASK] [sMASK] <sop> <eop> <|endoftext|> "
    "<|system|> <|user|> <|assistant|> <|observation|>".split()
)
_TAGS = frozenset(
    "<think> </think> <tool_call> </tool_call> <tool_response> </tool_response> "
    "<arg_key> </arg_key> <arg_value> </arg_value> /nothink".split()
)


@dataclass(frozen=True)
class Limit:
    """How many tokens a text may have.

    refusal: the sentence about one that has more, with a place for how many: "at least {tokens}".
    """

    tokens: int
    refusal: str

    def check(self, tokens: int) -> None:
        """Raises UsageError if these are too many."""
        if tokens > self.tokens:
            raise UsageError(self.refusal.format(tokens=tokens))


class Tokenizer:
    """A byte-level BPE tokenizer with the rules above.

    vocab_size: one more than the highest token id (the model may have more rows than that).
    longest: bytes of the longest token; None if a text may have more bytes than its tokens.
    eos_token_id: the ids that end a text. control_tokens: text of every control token to its id.
    tags: the text of the added tokens that users may type, such as <think>.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, eos_token_id: tuple[int, ...]) -> None:
        tokenizer.encode_special_tokens = True  # reads "special" tokens in a text as plain text
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.eos_token_id = eos_token_id
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        self.vocab_size = max(pieces.values(), default=-1) + 1
        # `_read` has set every token's special flag to what `_is_control` says.
        self.control_tokens = {t.content: i for i, t in added.items() if t.special}
        self.tags = frozenset(t.content for t in added.values() if not t.special)
        # Filled as tokens are met: asking the library each time is slow.
        self._bytes = {i: token.content.encode() for i, token in added.items()}
        self._control_ids = frozenset(self.control_tokens.values())
        self._texts = dict.fromkeys(self._control_ids, "")
        # The longest first: alternatives of a pattern are tried in their order.
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.longest: int | None = None
        if text_cuts.spells_texts(tokenizer):
            # A character of a piece stands for a byte.
            self.longest = max(map(len, [*pieces, *self._bytes.values()]))
        self._cuts = self.longest is not None and text_cuts.can_cut(tokenizer)

    @classmethod
    def load(cls, folder: Path, config: ModelConfig) -> "Tokenizer":
        """Read a checkpoint folder's tokenizer. Raises UsageError if it does not fit the model."""
        path = folder / "tokenizer.json"
        tokenizer = _read(path)
        if not _is_byte_level(tokenizer):
            raise UsageError(f"{path} is not a byte-level tokenizer, as all of GLM's are.")
        _check_config(folder / "tokenizer_config.json", tokenizer)
        loaded = cls(tokenizer, config.eos_token_id)
        loaded._check_fit(config.vocab_size, path)
        return loaded

    def _check_fit(self, rows: int, path: Path) -> None:
        if self.vocab_size > rows:
            raise UsageError(
                f"{path}: token id {self.vocab_size - 1} does not fit the model, whose vocab_size "
                f"is {rows}; take tokenizer and weights from the same checkpoint."
            )
        for token_id in self.eos_token_id:
            if token_id not in self._control_ids:
                raise UsageError(
                    f"{path}: eos_token_id {token_id} of config.json is not a special token of "
                    "the tokenizer; take both files from the same checkpoint."
                )

    def check(self, text: str, limit: Limit, before: int = 0) -> None:
        """Raises UsageError if so long a text is over the limit, however it is tokenised.

        before: tokens that there are already.
        """
        size = len(text.encode("utf-8", "surrogatepass"))
        limit.check(before + (-(-size // self.longest) if self.longest else 0))

    def encode(self, text: str, limit: Limit | None = None, before: int = 0) -> list[int]:
        """Token ids of text as a user typed it: tags are recognised, control tokens are not.

        limit: for these tokens and the `before` ones before them; more raise UsageError, without
        all being made. So does a lone surrogate, which JSON can carry but UTF-8 cannot.
        """
        if limit is not None:
            self.check(text, limit, before)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"the text holds the lone surrogate U+{ord(text[error.start]):04X} at position "
                f"{error.start}, which is not a character; send valid Unicode."
            ) from None
        ids: list[int] = []
        for part in text_cuts.parts(text) if self._cuts else [text]:
            # A batch of one, because the library lets other threads run only while it encodes
            # batches: a megabyte takes about a second.
            [encoding] = self._tokenizer.encode_batch_fast([part], add_special_tokens=False)
            ids += encoding.ids
            if limit is not None:
                limit.check(before + len(ids))
        return ids

    def encode_template(
        self, text: str, plain: Callable[[str], str] = str, limit: Limit | None = None
    ) -> list[int]:
        """Token ids of text whose control tokens are meant, such as a rendered template.

        `plain` is applied to what stands between them before it is encoded as plain text. More
        tokens than the limit raise UsageError, without all being made.
        """
        ids: list[int] = []
        start = 0
        for found in self._control.finditer(text):
            ids += self.encode(plain(text[start : found.start()]), limit, len(ids))
            ids.append(self.control_tokens[found.group()])
            start = found.end()
        return ids + self.encode(plain(text[start:]), limit, len(ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids: tags kept, control tokens left out, an unfinished last character too."""
        stream = self.stream()
        return stream.add(ids) + stream.flush()

    def stream(self) -> "TokenStream":
        """A decoder for ids that arrive a few at a time."""
        return TokenStream(self)

    def is_control(self, token_id: int) -> bool:
        """Whether decode leaves the token out."""
        return token_id in self._control_ids

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes of one token, perhaps part of a character; empty for an unused id."""
        found = self._bytes.get(token_id)
        if found is None:
            if not 0 <= token_id < self.vocab_size:
                return b""
            piece = self._tokenizer.id_to_token(token_id) or ""
            found = bytes(_BYTE_OF_CHARACTER[character] for character in piece)
            self._bytes[token_id] = found
        return found

    def text_of(self, ids: Iterable[int]) -> str:
        """The text of ids, that of control tokens included."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def token_text(self, token_id: int) -> str:
        """One token for people to read: U+FFFD stands for a character's part."""
        return self.token_bytes(token_id).decode(errors="replace")


class TokenStream:
    """Decodes ids as they come; the pieces join to `Tokenizer.decode` of all ids.

    A piece never ends inside a character. Bytes that cannot become a character are U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._token_bytes, self._hidden = tokenizer.token_bytes, tokenizer._control_ids
        self._texts = tokenizer._texts
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._waiting = False  # whether the decoder holds part of a character

    def add(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        text = ""
        for token_id in ids:
            found = None if self._waiting else self._texts.get(token_id)
            text += self._decode(token_id) if found is None else found
        return text

    def _decode(self, token_id: int) -> str:
        """One token's text, noted for the next time if it begins and ends between characters."""
        if token_id in self._hidden:
            return ""
        began = self._waiting
        text = self._decoder.decode(self._token_bytes(token_id))
        self._waiting = self._decoder.getstate()[0] != b""
        if not began and not self._waiting:
            self._texts[token_id] = text
        return text

    def flush(self) -> str:
        """End the text. All that can be waiting is part of a character, which is dropped."""
        self._decoder.reset()
        self._waiting = False
        return ""


def _is_control(content: str, special: bool) -> bool:
    return content in _CONTROL or (special and content not in _TAGS)


def _read(path: Path) -> tokenizers.Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path} is missing: a checkpoint folder needs it.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read ({error}): download it again.") from None
    tokenizer = _parse(text, path)
    wrong = [
        token.content
        for token in tokenizer.get_added_tokens_decoder().values()
        if token.special != _is_control(token.content, token.special)
    ]
    return _parse(_mark_special(text), path) if wrong else tokenizer


def _parse(text: str, path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing more specific
        raise UsageError(f"{path} is not a tokenizer ({error}): download it again.") from None


def _is_byte_level(tokenizer: tokenizers.Tokenizer) -> bool:
    pieces = tokenizer.get_vocab(with_added_tokens=False)
    return isinstance(tokenizer.decoder, ByteLevel) and set().union(*pieces) <= set(
        _BYTE_OF_CHARACTER
    )


def _mark_special(text: str) -> str:
    """Set the file's `special` flags to our rule; published files disagree about the tags."""
    raw: dict[str, Any] = json.loads(text)
    for token in raw["added_tokens"]:
        token["special"] = _is_control(token["content"], token["special"])
    return json.dumps(raw)


def _check_config(path: Path, tokenizer: tokenizers.Tokenizer) -> None:
    """tokenizer_config.json is optional, but where it lists added tokens it has to agree."""
    if not path.exists():
        return
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not valid JSON ({error}): download it again.") from None
    listed = raw.get("added_tokens_decoder") if isinstance(raw, dict) else None
    for token_id, token in (listed if isinstance(listed, dict) else {}).items():
        content = token.get("content") if isinstance(token, dict) else token
        found = tokenizer.id_to_token(int(token_id)) if token_id.isdecimal() else None
        if found != content:
            raise UsageError(
                f"{path}: token {token_id} is {content!r}, but {found!r} in tokenizer.json; take "
                "both files from the same checkpoint."
            )


def _byte_table() -> dict[str, int]:
    """Byte-level BPE's alphabet: printable Latin-1 bytes are themselves, the others follow U+0100.

    Source: `bytes_to_unicode` of GPT-2's encoder, which every byte-level tokenizer keeps.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    shifted = {chr(0x100 + n): byte for n, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


_BYTE_OF_CHARACTER = _byte_table()
