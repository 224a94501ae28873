"""What scripted streams say about time: every event comes at a moment that the test chooses."""

import json
from typing import Any

import pytest

from glm_portable.bench.serve.stream import Record, StreamReader

Moment = tuple[float, bytes]


def event(body: Any) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def token(text: str = "x", **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": text, **fields}]})


def said(**delta: Any) -> bytes:
    return event({"choices": [{"index": 0, "delta": delta}]})


def usage(count: int) -> bytes:
    return event({"choices": [], "usage": {"completion_tokens": count}})


DONE = b"data: [DONE]\n\n"


def read(*moments: Moment, chat: bool = False, cut: int = 0) -> Record:
    """cut: bytes a piece, 0 for whole events."""
    record = Record(prompt_len=3, start_time=100.0)
    reader = StreamReader(record, chat)
    for at, data in moments:
        for start in range(0, len(data), cut or len(data)):
            reader.feed(data[start : start + (cut or len(data))], 100 + at)
    reader.end()
    return record


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_a_stream_of_single_tokens(cut: int) -> None:
    record = read(
        (1, token("a")), (1.5, token("b")), (3, token("c")), (9, usage(3) + DONE), cut=cut
    )
    assert record.success and record.text == "abc" and record.output_tokens == 3
    assert (record.ttft, record.itl, record.latency) == (1, [0.5, 1.5], 3)


def test_an_event_of_several_tokens_is_one_gap() -> None:
    record = read((1, token("a b")), (2, token("c d e")), (2, usage(5) + DONE))
    assert record.itl == [1] and record.output_tokens == 5


def test_events_that_come_together_have_no_gap() -> None:
    assert read((1, token()), (2, token() + token() + usage(3) + DONE)).itl == [1, 0]


def test_the_usage_of_a_chat_counts_as_its_end_and_that_of_a_completion_does_not() -> None:
    assert read((1, token()), (5, usage(1) + DONE)).latency == 1
    assert read((1, said(content="x")), (5, usage(1) + DONE), chat=True).latency == 5


def test_thinking_and_empty_events_count_in_a_chat() -> None:
    record = read(
        (1, said(role="assistant", content="")),
        (2, said(reasoning_content="hm")),
        (4, said(content="yes")),
        (4.5, said()),
        (4.5, DONE),
        chat=True,
    )
    assert record.ttft == 1 and record.itl == [1, 2, 0.5] and record.text == "hmyes"
    assert record.success and record.output_tokens is None


def test_comments_names_and_carriage_returns_are_skipped() -> None:
    record = read((1, b": ping\n\nevent: x\r\n" + token().replace(b"\n", b"\r\n")), (2, DONE))
    assert record.success and record.ttft == 1


@pytest.mark.parametrize(
    ("moments", "reason"),
    [
        ([(1, token())], "ended without [DONE]"),
        ([(1, usage(0) + DONE)], "no token"),
        ([(1, DONE)], "no token"),
        ([(1, token()), (2, event({"error": {"message": "out of pages"}}) + DONE)], "out of pages"),
        ([(1, token()), (2, b"data: {oops\n\n" + DONE)], "no JSON"),
        ([(1, token()), (2, event([1]) + DONE)], "in the stream: [1]"),
    ],
)
def test_streams_that_failed(moments: list[Moment], reason: str) -> None:
    record = read(*moments)
    assert not record.success and reason in record.error
