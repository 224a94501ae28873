"""The Python interface, on the pocket model."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from glm_portable import GLM, UsageError, pocket
from glm_portable.serve.events import Content, Reasoning, ToolCallStart, fold
from tests.random_checkpoint import small_config, write_checkpoint

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "The city."}},
            "required": ["city"],
        },
    },
}
ASK_WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
WHO = [{"role": "user", "content": "Who are you?"}]


@pytest.fixture(scope="module")
def glm() -> GLM:
    return GLM.load(backend="cpu")


def test_pocket_is_the_default_model(glm: GLM) -> None:
    assert glm.name == "glm-pocket" and glm.folder == pocket.FOLDER
    assert glm.call_format == "glm45" and glm.model.dtype == torch.bfloat16


def test_generate_thinks_answers_and_calls_tools(glm: GLM) -> None:
    answer = glm.generate(WHO, temperature=0.0, max_tokens=100)
    assert answer.reasoning and answer.content and "GLM-Pocket" in answer.content
    quick = glm.generate(
        WHO, temperature=0.0, max_tokens=100, chat_template_kwargs={"enable_thinking": False}
    )
    assert quick.reasoning is None and quick.content and "GLM-Pocket" in quick.content
    call = glm.generate(ASK_WEATHER, tools=[WEATHER], temperature=0.0, max_tokens=100)
    assert [(c.name, json.loads(c.arguments)) for c in call.tool_calls] == [
        ("get_weather", {"city": "Paris"})
    ]
    assert answer.finish_reason == quick.finish_reason == call.finish_reason == "stop"


def test_stream_folds_to_the_answer(glm: GLM) -> None:
    for messages, tools in ((WHO, None), (ASK_WEATHER, [WEATHER])):
        events = list(glm.stream(messages, tools=tools, temperature=0.0, max_tokens=100))
        whole = glm.generate(messages, tools=tools, temperature=0.0, max_tokens=100)
        folded = fold(events)
        assert (folded.reasoning, folded.content) == (whole.reasoning, whole.content)
        assert [c.arguments for c in folded.tool_calls] == [c.arguments for c in whole.tool_calls]
        assert sum(isinstance(e, Reasoning | Content | ToolCallStart) for e in events) > 1


def test_drafts_are_asked_for_as_in_vllm(glm: GLM) -> None:
    drafting = GLM.load(
        backend="cpu", speculative_config={"method": "mtp", "num_speculative_tokens": 2}
    )
    options: Any = {"temperature": 0.0, "max_tokens": 100}
    assert drafting.generate(WHO, **options) == glm.generate(WHO, **options)
    assert drafting.engine.stats().num_accepted_tokens > 10


def test_pages_are_shared_by_calls_of_one_salt(glm: GLM) -> None:
    prompt = glm.tokenizer.encode("A text that is longer than two pages of the cache. " * 4)

    def found(**options: Any) -> int:
        before = glm.engine.stats().prefix_cache_hits
        glm.generate(prompt, max_tokens=1, **options)
        list(glm.stream(prompt, max_tokens=1, **options))
        return glm.engine.stats().prefix_cache_hits - before

    once = found(cache_salt="one")  # by the second of the two
    assert once > 0 and found(cache_salt="another") == once == found()
    assert found(cache_salt="one") == 2 * once


def test_a_call_of_a_higher_priority_goes_first() -> None:
    """Of more calls than run at once, all of which have come before the first step ends."""
    glm = GLM.load(backend="reference", scheduling_policy="priority")
    priorities = [n % 3 for n in range(24)]
    submit, asked, ended = glm.engine.submit, [], []
    begun, all_in = threading.Event(), threading.Event()

    def note(ids: Any, params: Any, on_delta: Any, *, priority: int, cache_salt: str) -> str:
        def receive(delta: Any) -> None:
            assert all_in.wait(60)
            ended.extend([priority] * (delta.finish_reason is not None))
            on_delta(delta)

        name = submit(ids, params, receive, priority=priority, cache_salt=cache_salt)
        asked.append(name)
        begun.set()
        if len(asked) == len(priorities) + 1:
            all_in.set()
        return name

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(len(priorities) + 1) as pool:
        patch.setattr(glm.engine, "submit", note)

        def ask(priority: int) -> None:
            glm.generate("Hi", max_tokens=3, ignore_eos=True, priority=priority)

        pool.submit(ask, -1)
        assert begun.wait(60)
        list(pool.map(ask, priorities))
    assert ended == sorted(ended) and len(ended) == len(asked)


def test_a_priority_is_of_one_prompt(glm: GLM) -> None:
    with pytest.raises(UsageError, match=r"priority is \[1\]; it must be a whole number"):
        glm.generate("Hi", priority=[1])  # type: ignore[arg-type]  # as vLLM's, of several prompts


def test_a_checkpoint_without_the_mtp_layer_cannot_draft(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, small_config(num_nextn_predict_layers=0))
    with pytest.raises(UsageError, match="has no MTP layer to draft with: leave speculative"):
        GLM.load(tmp_path, backend="cpu", speculative_config={"num_speculative_tokens": 1})


def test_closing_a_stream_frees_its_pages(glm: GLM) -> None:
    events = glm.stream(WHO, temperature=0.0, max_tokens=4000, ignore_eos=True)
    next(events)
    assert glm.engine.stats().pages_used > 0
    events.close()
    glm.generate("one more", max_tokens=1)  # cancellations are seen before the next step
    assert glm.engine.stats().pages_used == 0 and glm.engine.stats().running == 0


def test_generate_continues_ids_and_text_alike(glm: GLM) -> None:
    ids = glm.tokenizer.encode("17 + 25 =")
    by_ids = glm.generate(ids, temperature=0.0, max_tokens=8, ignore_eos=True)
    by_text = glm.generate("17 + 25 =", temperature=0.0, max_tokens=8, ignore_eos=True)
    assert by_ids == by_text and len(by_ids.token_ids) == 8
    assert by_ids.finish_reason == "length" and by_ids.reasoning is None


def test_greedy_text_follows_the_logits(glm: GLM) -> None:
    prompt = glm.chat.encode(WHO).token_ids
    answer = glm.generate(prompt, temperature=0.0, max_tokens=6, ignore_eos=True)
    logits = glm.logits([*prompt, *answer.token_ids])
    assert logits.shape == (len(prompt) + 6, glm.model.config.vocab_size)
    assert logits.dtype == torch.float32
    predicted = logits[len(prompt) - 1 : -1].argmax(-1).tolist()
    assert tuple(predicted) == answer.token_ids


def test_trace_has_every_layer(glm: GLM) -> None:
    trace = glm.trace([1, 2, 3])
    config = glm.model.config
    assert [r.shape for r in trace.residuals] == [(3, config.hidden_size)] * 4
    assert list(trace.routed) == [1, 2, 3]
    assert all(e.shape == (3, config.num_experts_per_tok) for _, e in trace.routed.values())


def test_mtp_predicts_the_token_after_next(glm: GLM) -> None:
    prompt = glm.chat.encode(WHO).token_ids
    ids = [*prompt, *glm.generate(prompt, temperature=0.0, max_tokens=40).token_ids]
    guesses = glm.mtp_logits(ids).argmax(-1)[len(prompt) : -1]
    hits = (guesses == torch.tensor(ids[len(prompt) + 2 :])).float().mean()
    assert hits > 0.9  # trained: about 99 %; a shifted input or a swapped projection: near 0


def test_reference_and_cpu_agree(glm: GLM) -> None:
    exact, fast = (GLM.load(backend=b, dtype="float32") for b in ("reference", "cpu"))
    ids = exact.chat.encode(ASK_WEATHER, [WEATHER]).token_ids
    torch.testing.assert_close(fast.logits(ids), exact.logits(ids), atol=1e-3, rtol=0)
    for layer, (_, chosen) in exact.trace(ids).routed.items():
        assert torch.equal(fast.trace(ids).routed[layer][1], chosen)


@pytest.mark.parametrize(
    "ids, message",
    [([], "0 tokens"), ([1280], "token id 1280"), ([-1], "token id -1"), ([1] * 8193, "8193")],
)
def test_bad_ids_are_refused(glm: GLM, ids: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        glm.logits(ids)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"backend": "tpu"}, "backend 'tpu' is not one of auto, ascend, cpu"),
        ({"dtype": "float8"}, "dtype 'float8' is not one of auto, bfloat16"),
        ({"model": "/no/such/folder"}, "/no/such/folder"),
        ({"tool_call_parser": "hermes"}, "hermes"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        GLM.load(**options)


@pytest.fixture
def base_model(tmp_path: Path) -> Path:
    """A random checkpoint with the pocket tokenizer and, like a base model, no chat template."""
    write_checkpoint(tmp_path, small_config(vocab_size=1280, eos_token_id=[1237]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((pocket.FOLDER / name).read_bytes())
    return tmp_path


def test_generation_config_sets_what_a_call_leaves_open(base_model: Path) -> None:
    (base_model / "generation_config.json").write_text('{"temperature": 0.25, "eos_token_id": 1}')
    glm = GLM.load(base_model, backend="reference")
    assert glm.sampling.temperature == 0.25 and glm.sampling.top_p == 1.0


def test_a_base_model_completes_text_and_cannot_chat(base_model: Path) -> None:
    glm = GLM.load(base_model, backend="cpu", max_model_len=64)
    assert glm.engine.limits.max_model_len == 64
    assert len(glm.generate("Once", max_tokens=3, ignore_eos=True).token_ids) == 3
    with pytest.raises(UsageError, match="no chat template"):
        glm.generate(WHO)


def test_pages_have_the_size_that_the_backend_prefers(
    glm: GLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert glm.limits(memory_bytes=1 << 26, max_model_len=64).page_size == 16
    monkeypatch.setattr(glm.model.ops, "page_size", 64)
    limits = glm.limits(memory_bytes=1 << 26, max_model_len=64, max_num_seqs=3)
    assert limits.page_size == 64 and limits.num_pages == 3
    step, caches = glm._prefill(65)
    assert step.block_table_BP.shape == (1, 2) and caches[0].k_PSGC.shape[:2] == (2, 64)
