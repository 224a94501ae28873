"""What --stream-interval makes of the deltas of an answer, and that it changes nothing else."""

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from glm_portable.engine.types import Delta, joined
from glm_portable.serve.gathering import Gathering
from tests.serve.conversation import CALL, HI, THOUGHT, WEATHER, folded
from tests.serve.fake_engine import TOKENIZER, WAIT_S, Running, fake_server, says


def gathered(interval: int, *deltas: Delta) -> list[Delta]:
    found: list[Delta] = []
    gathering = Gathering(interval, found.append)
    for delta in deltas:
        gathering.receive(delta)
    return found


def word(number: int, **others: Any) -> Delta:
    return Delta((number,), f"{number} ", **others)


def test_the_first_at_once_then_so_many_then_the_rest() -> None:
    first = word(0, num_cached_tokens=3)
    found = gathered(3, first, *map(word, range(1, 8)), word(8, finish_reason="length"))
    assert found[0] is first
    assert [delta.token_ids for delta in found] == [(0,), (1, 2, 3), (4, 5, 6), (7, 8)]
    assert [delta.text for delta in found] == ["0 ", "1 2 3 ", "4 5 6 ", "7 8 "]
    assert [delta.finish_reason for delta in found] == [None, None, None, "length"]
    assert found[1].parts == tuple(map(word, (1, 2, 3)))


def test_deltas_of_several_tokens_keep_their_parts() -> None:
    drafted = joined([word(1), word(2)])
    found = gathered(3, word(0), drafted, drafted, word(5, finish_reason="stop"))
    assert [delta.token_ids for delta in found] == [(0,), (1, 2, 1, 2), (5,)]
    assert found[1].parts == tuple(map(word, (1, 2, 1, 2)))


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_what_was_generated_comes_before_a_failure(reason: Any) -> None:
    failure = Delta(finish_reason=reason)
    found = gathered(9, word(0), word(1), word(2), failure)
    assert [delta.token_ids for delta in found] == [(0,), (1, 2), ()] and found[-1] is failure


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with fake_server(stream_interval=4) as running:
        yield running


@pytest.mark.parametrize("text", [THOUGHT, "Hello. " + CALL + " Bye."])
@pytest.mark.parametrize("options", [{}, {"logprobs": True}, {"parallel_tool_calls": False}])
def test_an_answer_is_the_same(running: Running, text: str, options: Any) -> None:
    running.engine.script = lambda request: says(text)
    asked = {"model": "pocket", "messages": HI, "tools": [WEATHER], **options}
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="x", timeout=WAIT_S) as client:
        whole = client.chat.completions.create(**asked).choices[0]
        asked["stream_options"] = {"include_usage": True}
        chunks = list(client.chat.completions.create(**asked, stream=True))
    tokens = len(TOKENIZER.encode(text)) + 1
    found = folded(chunks)
    assert found["content"] == (whole.message.content or "")
    assert found["finish"] == [whole.finish_reason]
    if not options.get("parallel_tool_calls", True) and CALL in text:
        assert chunks[-1].usage.completion_tokens < tokens, "it ends with its call"
    else:
        assert chunks[-1].usage.completion_tokens == tokens
    assert 2 < len(chunks) <= 2 + -(-tokens // 4) + 1


def test_the_time_limit_loses_nothing() -> None:
    """What was held back is sent before the error."""
    with fake_server(stream_interval=99, request_timeout_s=0.5) as running:
        running.engine.script = lambda request: says("One two three.")[:-1]
        body = {"prompt": "a", "stream": True}
        text = httpx.post(f"{running.url}/v1/completions", json=body, timeout=WAIT_S).text
    events = text.split("\n\n")
    assert "three" in events[1] and "request_timeout" in events[2], text
