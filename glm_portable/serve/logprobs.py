"""Log probabilities in the two forms of the OpenAI API."""

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from glm_portable.engine.types import TokenLogprob
from glm_portable.serve.errors import bad_request

LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


MAX_PROMPT_LOGPROBS = 2**21
"""Of one request: in the server's memory they take some 200 bytes each, until the answer is out."""


def check_prompt_logprobs(tokens: int, count: int | None) -> None:
    """Raise ApiError if `count` alternatives for each of `tokens` prompt tokens are too many."""
    if count is not None and tokens * (count + 1) > MAX_PROMPT_LOGPROBS:
        raise bad_request(
            f"The request asks for {tokens * (count + 1)} log probabilities of its prompts' "
            f"{tokens} tokens; at most {MAX_PROMPT_LOGPROBS} can be given at once: send fewer "
            "prompts, or ask for fewer alternatives."
        )


class Vocabulary(Protocol):
    """What this module needs of `glm_portable.tokenizer.Tokenizer`."""

    def token_bytes(self, token_id: int) -> bytes: ...

    def is_control(self, token_id: int) -> bool: ...


def chat_logprobs(tokens: Sequence[TokenLogprob], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """The `logprobs.content` of a chat choice: one entry a token, end-of-text included."""
    return [
        _chat_entry(token.token_id, token.logprob, vocabulary)
        | {"top_logprobs": [_chat_entry(*pair, vocabulary) for pair in token.top]}
        for token in tokens
    ]


def _chat_entry(token_id: int, logprob: float, vocabulary: Vocabulary) -> dict[str, Any]:
    raw = vocabulary.token_bytes(token_id)
    text = raw.decode(errors="replace")
    return {"token": text, "logprob": max(logprob, LOWEST), "bytes": list(raw)}


def prompt_logprobs(
    tokens: Sequence[TokenLogprob], count: int, vocabulary: Vocabulary
) -> list[dict[str, Any] | None]:
    """vLLM's field: an entry a prompt token, the first null; the others by token id."""

    def entry(token_id: int, logprob: float, rank: int | None) -> dict[str, Any]:
        text = vocabulary.token_bytes(token_id).decode(errors="replace")
        return {"logprob": max(logprob, LOWEST), "rank": rank, "decoded_token": text}

    found: list[dict[str, Any] | None] = [None]
    for token in tokens:
        ranked = enumerate(token.top[:count], start=1)
        top = {str(i): entry(i, logprob, rank) for rank, (i, logprob) in ranked}
        own = {str(token.token_id): entry(token.token_id, token.logprob, token.rank)}
        found.append(own | top)
    return found


class CompletionLogprobs:
    """The `logprobs` of a text completion, in pieces as the tokens come.

    Alternatives are keyed by token text; a part of a character is written bytes:\\xe2\\x80, and
    an id without text token_id:151400, so that two such tokens do not collide. `text_offset`
    counts characters of the choice's text.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def prompt(
        self, prompt_ids: Sequence[int], tokens: Sequence[TokenLogprob], count: int
    ) -> dict[str, list[Any]]:
        """The four lists for an echoed prompt, of whose first token nothing is known.

        count: of the alternatives of `tokens`, how many to show.
        """
        first: dict[str, list[Any]] = {
            "tokens": [self._text(prompt_ids[0])],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [self._advance(prompt_ids[0])],
        }
        shown = [TokenLogprob(t.token_id, t.logprob, t.top[:count]) for t in tokens]
        return joined([first, self._lists(shown, hidden=False)])

    def take(self, tokens: Sequence[TokenLogprob]) -> dict[str, list[Any]]:
        """The four lists for these tokens of the answer, whose text leaves control tokens out."""
        return self._lists(tokens, hidden=True)

    def _lists(self, tokens: Sequence[TokenLogprob], hidden: bool) -> dict[str, list[Any]]:
        return {
            "tokens": [self._text(token.token_id) for token in tokens],
            "token_logprobs": [max(token.logprob, LOWEST) for token in tokens],
            "top_logprobs": [self._top(token) for token in tokens],
            "text_offset": [self._advance(token.token_id, hidden) for token in tokens],
        }

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        """The alternatives and the token itself, whichever rank it has."""
        pairs = [*token.top, (token.token_id, token.logprob)]
        return {self._text(token_id): max(logprob, LOWEST) for token_id, logprob in pairs}

    def _text(self, token_id: int) -> str:
        raw = self._vocabulary.token_bytes(token_id)
        if not raw:
            return f"token_id:{token_id}"
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _advance(self, token_id: int, hidden: bool = False) -> int:
        """Where the token's text begins. hidden: whether that of a control token is left out."""
        start = self._offset
        if not (hidden and self._vocabulary.is_control(token_id)):
            self._offset += len(self._decoder.decode(self._vocabulary.token_bytes(token_id)))
        return start


def joined(pieces: Sequence[dict[str, list[Any]]]) -> dict[str, list[Any]]:
    """Pieces of `CompletionLogprobs.take`, in order, as one."""
    names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    return {name: [entry for piece in pieces for entry in piece[name]] for name in names}
