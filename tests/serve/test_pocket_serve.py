"""The embedded model behind the real server and the wire: what a person sees first."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest

from glm_portable.engine.engine import Engine
from glm_portable.glm import GLM
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from glm_portable.serve.structured.compiler import vocabulary_of
from tests.browser import chromium, needs_browser, new_page
from tests.serve.conversation import folded
from tests.serve.fake_engine import TOKENIZER, WAIT_S, serving
from tests.serve.raw import start_request
from tests.serve.remote.pair import client_of, hosted

WINDOW = 2048
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city."},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city"],
        },
    },
}
TIME: Any = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the time in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
QUIET: Any = {"chat_template_kwargs": {"enable_thinking": False}}


@dataclass
class Pocket:
    url: str
    engine: Engine
    client: openai.OpenAI

    def ask(self, text: str, **options: Any) -> Any:
        return self.client.chat.completions.create(
            model="glm-pocket",
            messages=[{"role": "user", "content": text}],
            **{"temperature": 0, "max_tokens": 200, **options},
        )

    def continue_text(self, prompt: Any, **options: Any) -> Any:
        options = {"temperature": 0, "max_tokens": 40, **options}
        return self.client.completions.create(model="glm-pocket", prompt=prompt, **options)


@pytest.fixture(scope="module")
def pocket() -> Iterator[Pocket]:
    # float32: in bfloat16 the rounding of a sum depends on how many requests share the step.
    glm = GLM.load(backend="cpu", dtype="float32")
    limits = glm.limits(max_model_len=WINDOW, max_num_seqs=16)
    settings = ServerSettings(port=0, served_model_names=("glm-pocket",))
    vocabulary, observed = vocabulary_of(glm.tokenizer), RequestMetrics(WINDOW)
    with (
        Engine(glm.model, glm.tokenizer, limits, observer=observed) as engine,
        hosted(engine, lambda: vocabulary, observed) as sock,
    ):
        client = client_of(engine, sock, glm.tokenizer.vocab_size)
        service = Service(
            client,
            glm.chat,
            glm.tokenizer,
            glm.call_format,
            WINDOW,
            settings,
            observed=client.observed,
            remote=client,
        )
        with (
            serving(service) as (url, _, _),
            openai.OpenAI(
                base_url=f"{url}/v1", api_key="EMPTY", max_retries=0, timeout=3 * WAIT_S
            ) as openai_client,
        ):
            yield Pocket(url, engine, openai_client)


def calls_of(message: Any) -> list[tuple[str, Any]]:
    calls = message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_an_answer_with_thinking(pocket: Pocket) -> None:
    choice = pocket.ask("What is 17 + 25?").choices[0]
    assert choice.message.content == "17 + 25 = 42"
    assert "12" in choice.message.reasoning_content
    assert choice.finish_reason == "stop"


def test_an_answer_without_thinking(pocket: Pocket) -> None:
    message = pocket.ask("Who are you?", extra_body=QUIET).choices[0].message
    assert "GLM-Pocket" in message.content and not hasattr(message, "reasoning_content")


@pytest.mark.parametrize("extra", [{}, QUIET])
def test_a_tool_call(pocket: Pocket, extra: Any) -> None:
    question = "What is the weather in Paris in celsius?"
    choice = pocket.ask(question, tools=[WEATHER], extra_body=extra).choices[0]
    assert calls_of(choice.message) == [("get_weather", {"city": "Paris", "unit": "celsius"})]
    assert choice.finish_reason == "tool_calls"


def test_a_tool_result_is_answered(pocket: Pocket) -> None:
    question = {"role": "user", "content": "What is the weather in Paris?"}
    called = pocket.ask("What is the weather in Paris?", tools=[WEATHER]).choices[0].message
    result = json.dumps({"city": "Paris", "weather": "sunny", "temperature": 21})
    call_id = called.tool_calls[0].id
    history: Any = [question, called, {"role": "tool", "tool_call_id": call_id, "content": result}]
    answer = pocket.client.chat.completions.create(
        model="glm-pocket", messages=history, tools=[WEATHER], temperature=0, max_tokens=200
    )
    assert "sunny" in (answer.choices[0].message.content or "")
    assert answer.choices[0].message.tool_calls is None


def test_a_call_is_enforced(pocket: Pocket) -> None:
    assert pocket.ask("Hello!", tools=[WEATHER, TIME]).choices[0].message.tool_calls is None
    forced = pocket.ask("Hello!", tools=[WEATHER, TIME], tool_choice="required").choices[0]
    assert [name for name, _ in calls_of(forced.message)][0] in ("get_weather", "get_time")
    named: Any = {"type": "function", "function": {"name": "get_time"}}
    question = "What is the weather in Paris?"
    choice = pocket.ask(question, tools=[WEATHER, TIME], tool_choice=named).choices[0]
    assert calls_of(choice.message) == [("get_time", {"city": "Paris"})]


QUESTIONS = [
    ("What is 17 + 25?", {}),
    ("Who are you?", {"extra_body": QUIET}),
    ("What is the weather in Rome?", {"tools": [WEATHER, TIME]}),
    ("Say hello.", {"max_tokens": 4}),
    ("Count to ten.", {"stop": ["5"], "extra_body": QUIET}),
    ("Tell me something.", {"temperature": 1.0, "seed": 7}),
]


@pytest.mark.parametrize(("question", "options"), QUESTIONS)
def test_a_stream_adds_up_to_the_whole(pocket: Pocket, question: str, options: Any) -> None:
    pocket.engine._core.pool.forget()
    whole = pocket.ask(question, **options)
    choice = whole.choices[0]
    pocket.engine._core.pool.forget()
    usage = {"stream_options": {"include_usage": True}}
    chunks = list(pocket.ask(question, stream=True, **usage, **options))
    parts = folded(chunks)
    assert parts["content"] == (choice.message.content or "")
    assert parts["reasoning"] == (getattr(choice.message, "reasoning_content", None) or "")
    streamed = [(name, json.loads(text)) for name, text in parts["calls"].values()]
    assert streamed == calls_of(choice.message)
    assert parts["finish"] == [choice.finish_reason]
    assert chunks[-1].usage == whole.usage


def test_the_next_turn_finds_the_one_before_it(pocket: Pocket) -> None:
    """Prompt and answer; with another salt, or where every token is looked at, nothing."""
    pocket.engine._core.pool.forget()
    ids = list(range(100, 140))
    cached = []
    for extra in ({}, {}, {"cache_salt": "mine"}, {"cache_salt": "mine"}, {"prompt_logprobs": 0}):
        usage = pocket.continue_text(ids, max_tokens=2, extra_body=extra).usage
        cached.append(usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 32, 0, 32, 0]
    before = pocket.engine.stats()
    history: Any = [{"role": "user", "content": "What is 17 + 25?"}]
    for question in ("Who are you?", "Who are you?"):
        answer = pocket.client.chat.completions.create(
            model="glm-pocket", messages=history, temperature=0, max_tokens=60, extra_body=QUIET
        )
        history += [answer.choices[0].message, {"role": "user", "content": question}]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    found = answer.usage.prompt_tokens_details.cached_tokens
    assert found and found % 16 == 0
    stats = pocket.engine.stats()
    assert stats.prefix_cache_hits - before.prefix_cache_hits >= found


def test_sixteen_at_once_answer_as_if_alone(pocket: Pocket) -> None:
    def answer(question: tuple[str, Any]) -> Any:
        text, options = question
        return folded(list(pocket.ask(text, stream=True, **options))) | {"calls": None}

    alone = [answer(question) for question in QUESTIONS]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(answer, QUESTIONS * 3)) == alone * 3


def test_each_choice_has_its_seed(pocket: Pocket) -> None:
    options: Any = {"temperature": 2.0, "extra_body": {"ignore_eos": True}}
    both = pocket.continue_text([5, 6], n=2, seed=5, **options).choices
    alone = [pocket.continue_text([5, 6], seed=s, **options).choices[0] for s in (5, 6)]
    assert [choice.text for choice in both] == [choice.text for choice in alone]
    assert both[0].text != both[1].text


def test_completions_and_their_logprobs(pocket: Pocket) -> None:
    prompts = ["[gMASK]<sop><|user|>\nWho are you?/nothink<|assistant|>\n<think></think>\n", [5, 6]]
    answer = pocket.continue_text(prompts[:1], logprobs=2)
    choice = answer.choices[0]
    assert "GLM-Pocket" in choice.text
    assert len(choice.logprobs.tokens) == answer.usage.completion_tokens
    assert "".join(choice.logprobs.tokens).startswith(choice.text)
    for token, logprob, top in zip(
        choice.logprobs.tokens,
        choice.logprobs.token_logprobs,
        choice.logprobs.top_logprobs,
        strict=True,
    ):
        assert top[token] == logprob == max(top.values()) <= 0
    fixed = pocket.continue_text(prompts[1], max_tokens=5, extra_body={"ignore_eos": True})
    assert fixed.usage.completion_tokens == 5 and fixed.choices[0].finish_reason == "length"


def test_a_prompt_over_the_window(pocket: Pocket) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        pocket.continue_text([5] * 3000)
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is 2048 tokens" in str(caught.value)
    assert "3000" in str(caught.value)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_pages(pocket: Pocket, stream: bool) -> None:
    """Counted in steps: the answer alone would take 1900 of them."""
    before = pocket.engine.stats().generation_tokens
    connection = start_request(pocket.url, stream=stream, max_tokens=1900, ignore_eos=True)
    while pocket.engine.stats().generation_tokens == before:
        httpx.get(f"{pocket.url}/health")
    connection.close()
    left_at = pocket.engine.stats().steps
    while pocket.engine.stats().pages_used:
        assert pocket.engine.stats().steps < left_at + 500
        httpx.get(f"{pocket.url}/health")
    assert pocket.engine.stats().running == 0


def test_what_the_engine_observed_is_in_the_metrics(pocket: Pocket) -> None:
    """As of now, though it is the other side that sees it."""
    name = 'vllm:request_success_total{engine="0",finished_reason="length",model_name="glm-pocket"}'

    def seen() -> float:
        lines = httpx.get(f"{pocket.url}/metrics").text.splitlines()
        [line] = [line for line in lines if line.startswith(name)]
        return float(line.rpartition(" ")[2])

    before = seen()
    pocket.continue_text([5, 6], max_tokens=2, extra_body={"ignore_eos": True})
    assert seen() == before + 1


def test_the_numbers_are_checked_over_the_wire(pocket: Pocket) -> None:
    answer = httpx.get(f"{pocket.url}/health", params={"check": "numerics"}, timeout=3 * WAIT_S)
    assert answer.status_code == 200 and answer.json()["numerics"]["drift"] == 0.0


def test_the_score_of_a_text_is_that_of_generating_it(pocket: Pocket) -> None:
    prompt = glm_ids("[gMASK]<sop><|user|>\nWho are you?/nothink<|assistant|>\n<think></think>\n")
    wrote = pocket.continue_text(prompt, logprobs=1).choices[0].logprobs
    continued = prompt + glm_ids("".join(wrote.tokens))
    assert len(continued) == len(prompt) + len(wrote.tokens)
    extra = {"prompt_logprobs": 1}
    [scored] = pocket.continue_text(
        continued, max_tokens=1, echo=True, logprobs=1, extra_body=extra
    ).choices
    found = scored.logprobs
    assert found.tokens[len(prompt) : -1] == wrote.tokens
    assert found.token_logprobs[len(prompt) : -1] == pytest.approx(wrote.token_logprobs, abs=1e-4)
    answer = slice(len(prompt), -1)
    tops = [max(top.values()) for top in found.top_logprobs[answer]]
    assert tops == found.token_logprobs[answer]  # greedy, by equal floats
    ranks = [
        entries[str(token)]["rank"]
        for token, entries in zip(continued[1:], scored.prompt_logprobs[1:], strict=True)
    ]
    assert set(ranks[len(prompt) - 1 :]) == {1} != set(ranks)


def test_anthropics_client(pocket: Pocket) -> None:
    question: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    tool: Any = {**WEATHER["function"], "input_schema": WEATHER["function"]["parameters"]}
    options: Any = {"model": "glm-pocket", "max_tokens": 200, "tools": [tool]}
    options["thinking"] = {"type": "enabled", "budget_tokens": 1024}
    options["extra_body"] = {"temperature": 0}  # of which the client has no parameter
    with anthropic.Anthropic(base_url=pocket.url, api_key="EMPTY", max_retries=0) as client:
        counted = client.messages.count_tokens(
            model="glm-pocket", messages=question, tools=[tool], thinking=options["thinking"]
        )
        with client.messages.stream(messages=question, **options) as stream:
            first = stream.get_final_message()
        call = first.content[-1]
        assert call.type == "tool_use" and call.input == {"city": "Paris"}
        assert first.usage.input_tokens == counted.input_tokens
        result = json.dumps({"city": "Paris", "weather": "sunny", "temperature": 21})
        answer: Any = {"type": "tool_result", "tool_use_id": call.id, "content": result}
        history = [
            *question,
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [answer]},
        ]
        last = client.messages.create(messages=history, **options)
    assert last.content[-1].type == "text" and "sunny" in last.content[-1].text
    assert last.stop_reason == "end_turn"


def test_the_responses_api(pocket: Pocket) -> None:
    options: Any = {"model": "glm-pocket", "temperature": 0, "max_output_tokens": 200}
    whole = pocket.client.responses.create(input="What is 17 + 25?", **options)
    assert whole.output_text == "17 + 25 = 42"
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    with pocket.client.responses.stream(input="What is 17 + 25?", **options) as stream:
        last = stream.get_final_response()
    assert last.output_text == whole.output_text and last.usage == whole.usage


def glm_ids(text: str) -> list[int]:
    return TOKENIZER.encode_template(text)


@needs_browser
def test_the_page_shows_what_the_model_thinks_and_answers(pocket: Pocket, tmp_path: Path) -> None:
    with chromium(tmp_path) as browser, new_page(browser) as page:
        page.open(pocket.url)
        page.until("document.getElementById('model').value === 'glm-pocket'")
        page.js("document.getElementById('temperature').value = '0'")
        page.type("What is 17 + 25?")
        page.press("Enter")
        page.until("document.querySelector('.answer .again')?.hidden === false")
        assert "42" in page.text(".answer .said") and "17" in page.js(
            "document.querySelector('.thought').textContent"
        )
        assert "tokens/s" in page.text(".figures")
