"""Print what a grammar costs at a vocabulary of GLM's size: once, and for each token.

    python -m tools.grammar_masks [CHECKPOINT_FOLDER]

Without a folder the vocabulary is made up: all bytes and 151,000 words of random syllables.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import torch

from glm_portable.config import ModelConfig
from glm_portable.engine import grammar
from glm_portable.engine.grammar import Grammar, TokenTable, Vocabulary
from glm_portable.engine.sampling import unpack
from glm_portable.serve.structured.compiler import token_table
from glm_portable.serve.structured.probe import Probe
from glm_portable.tokenizer import Tokenizer

SIZE = 151_552
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 200},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 10},
        "kind": {"enum": ["person", "company"]},
        "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
    },
    "required": ["name", "age", "tags", "kind", "zip"],
    "additionalProperties": False,
}
ANSWER = json.dumps({
    "name": "Hans-Peter of Hohenstein", "age": 42, "tags": ["one two three", "four"],
    "kind": "person", "zip": "53111",
})  # fmt: skip
THOUGHT = "The user wants a person, so I make one up.</think>\n"
ROWS = 64


def made_up() -> TokenTable:
    """Bytes, words, and three control tokens at the end."""
    random, pieces = Random(0), {bytes([byte]): None for byte in range(256)}
    while len(pieces) < SIZE - 3:
        letters = [random.choice("bcdfghklmnprstvw") + random.choice("aeiou") for _ in range(4)]
        word = random.choice(["", " "]) + "".join(letters[: random.randint(1, 4)])
        end = random.choice('".,') if random.random() < 0.01 else ""
        pieces[(word + end).encode()] = None
    control = tuple(range(SIZE - 3, SIZE))
    return TokenTable((*pieces, b"<|end|>", b"<|user|>", b"<|tool|>"), control, control)


def measure(name: str, text: str, vocabulary: Vocabulary, answer: str) -> Grammar:
    """Compile, and follow the answer, which is spelled by the longest tokens."""
    probe = Probe(vocabulary.table)
    probe.check('start: "warm"')
    tried = milliseconds(lambda: probe.check(text))
    compiled = vocabulary.compile(text)
    once = milliseconds(lambda: vocabulary.compile(text))
    state, words_W = compiled.start(), np.zeros(vocabulary.words, dtype=np.uint32)
    masks, appends = [], []
    for token in vocabulary.table.spell(answer):
        masks.append(milliseconds(lambda: state.fill(words_W)))
        appends.append(milliseconds(lambda token=token: state.append(token)))  # type: ignore[misc]
        assert state.failure is None
    print(
        f"{name}: tried in {tried:.0f} ms, compiled in {once:.1f} ms; mask of a token "
        f"{statistics.median(masks):.3f} ms median, {statistics.mean(masks):.3f} mean, "
        f"{max(masks):.1f} longest; token appended in {statistics.median(appends):.3f} ms"
    )
    return compiled


def many(compiled: Grammar, vocabulary: Vocabulary) -> None:
    """A step of many answers, each at another place of the same grammar."""
    tokens, states = vocabulary.table.spell(ANSWER), []
    for row in range(ROWS):
        states.append(compiled.start())
        for token in tokens[: row % len(tokens)]:
            states[-1].append(token)
    words_RW = np.zeros((ROWS, vocabulary.words), dtype=np.uint32)
    first = milliseconds(lambda: grammar.fill(states, words_RW))
    again = min(milliseconds(lambda: grammar.fill(states, words_RW)) for _ in range(5))
    logits_RV, cpu = torch.randn(ROWS, vocabulary.size), torch.device("cpu")

    def apply() -> None:
        logits_RV.masked_fill_(unpack(~words_RW, vocabulary.size, cpu), float("-inf"))

    applied = min(milliseconds(apply) for _ in range(5))
    print(
        f"{ROWS} rows at once: masks in {first:.1f} ms the first time, {again:.1f} ms after that; "
        f"applied to the logits on the CPU in {applied:.1f} ms"
    )


def milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    if folder is None:
        table, encode = made_up(), None
    else:
        tokenizer = Tokenizer.load(folder, ModelConfig.load(folder))
        table, encode = token_table(tokenizer), tokenizer.encode
    begin = time.perf_counter()
    vocabulary = Vocabulary(table, encode)
    print(
        f"vocabulary of {vocabulary.size} tokens: prepared in {time.perf_counter() - begin:.1f} s"
    )
    schema = grammar.json_value(SCHEMA)
    compiled = measure("JSON schema", f"start: {schema}", vocabulary, ANSWER)
    thinking = f'start: THINK "\\n"? body\nbody: {schema}\n'
    thinking += f'THINK: ({grammar.without("</think>")}) "</think>"'
    measure("Thinking, then the schema", thinking, vocabulary, THOUGHT + ANSWER)
    many(compiled, vocabulary)


if __name__ == "__main__":
    main()
