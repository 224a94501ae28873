"""Where prompts of an exact number of tokens come from: a tokenizer here, the server's, or none."""

from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np

from glm_portable import hub
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.tokenizer import Tokenizer

_BYTES = 256
"""Byte-level vocabularies, which all of GLM's are, begin with one token for each byte."""


class Tokens(Protocol):
    """Text to ids and back. `ids`: those that random prompts are made of."""

    name: str
    ids: np.ndarray[Any, np.dtype[np.int64]]

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class Local:
    """A checkpoint folder's tokenizer; random ids are all that are text."""

    def __init__(self, model: str) -> None:
        folder = Path(hub.resolve(model))
        tokenizer = Tokenizer.load(folder, ModelConfig.load(folder))
        self.name = model
        usable = [
            i
            for i in range(tokenizer.vocab_size)
            if not tokenizer.is_control(i) and tokenizer.token_bytes(i)
        ]
        self.ids = np.array(usable, dtype=np.int64)
        self.encode, self.decode = tokenizer.encode, tokenizer.decode


class Remote:
    """The server's /tokenize and /detokenize; random ids are what random words consist of."""

    def __init__(self, http: httpx.Client, model: str, seed: int) -> None:
        self._http, self._model = http, model
        self.name = str(http.base_url)
        rng = np.random.default_rng(seed)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        words = ["".join(rng.choice(letters, size)) for size in rng.integers(1, 8, 4000)]
        self.ids = np.array(sorted(set(self.encode(" ".join(words)))), dtype=np.int64)

    def encode(self, text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        ids: list[int] = self._ask("/tokenize", body, "tokens")
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._ask("/detokenize", {"tokens": ids}, "prompt"))

    def _ask(self, path: str, body: dict[str, Any], field: str) -> Any:
        try:
            response = self._http.post(path, json=body | {"model": self._model})
            return response.raise_for_status().json()[field]
        except (httpx.HTTPError, ValueError, KeyError) as error:
            raise UsageError(
                f"{self._http.base_url}{path} does not answer as vLLM's does ({error}): "
                "name the model's folder with --tokenizer."
            ) from None


class Bytes:
    """No tokenizer at all: ids of single bytes, for an endpoint that takes ids."""

    name = "ids of single bytes"
    ids = np.arange(_BYTES)

    def encode(self, text: str) -> list[int]:
        raise _need_tokenizer()

    def decode(self, ids: list[int]) -> str:
        raise _need_tokenizer()


def find(model: str | None, http: httpx.Client, served: str, seed: int) -> Tokens:
    """The tokenizer of a folder or hub id; without one the server's, if it has any."""
    if model is not None:
        return Local(model)
    try:
        offered = http.post("/tokenize", json={"model": served, "prompt": "a"}).status_code == 200
    except httpx.HTTPError as error:
        raise UsageError(f"{http.base_url} does not answer ({error}): start the server.") from None
    return Remote(http, served, seed) if offered else Bytes()


def _need_tokenizer() -> UsageError:
    return UsageError(
        "the server has no /tokenize, and these prompts are text: name the model's folder "
        "with --tokenizer, or use random prompts on /v1/completions."
    )
