"""The engine's thread: submit, cancel, drain, close, and what happens when something breaks."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from glm_portable.engine.completion import EngineFailure
from glm_portable.engine.engine import Engine, EngineDraining
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.errors import UsageError
from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import EOS, VOCAB, FakeModel, Words, answer, limits, prefix_hash, word

GREEDY = SamplingParams(temperature=0, max_tokens=12)
ENDLESS = SamplingParams(temperature=0, ignore_eos=True)
WAIT = 30.0
"""Seconds after which a test gives up; none of them takes that long."""


class Client:
    """Collects the deltas of one request; may do something on the engine's thread at the first."""

    def __init__(self, at_first: Callable[[], None] = lambda: None) -> None:
        self.deltas: list[Delta] = []
        self.began, self.ended = threading.Event(), threading.Event()
        self.at_first = at_first

    def __call__(self, delta: Delta) -> None:
        assert not self.ended.is_set(), "a delta after the last one"
        self.deltas.append(delta)
        if not self.began.is_set():
            self.began.set()
            self.at_first()
        if delta.finish_reason is not None:
            self.ended.set()

    def wait(self) -> Delta:
        assert self.ended.wait(WAIT)
        return self.deltas[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)


class Fragile(FakeModel):
    """Fails at a prompt that begins with BAD; can be held at the start of a step."""

    BAD = 33

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        assert self.open.wait(WAIT)
        if self.BAD in ids_T[step.positions_T == 0]:
            raise RuntimeError("secret address 0x7f")
        return super().forward(ids_T, step, caches)


@pytest.fixture
def model() -> Fragile:
    return Fragile()


@pytest.fixture
def engine(model: Fragile) -> Iterator[Engine]:
    with Engine(model, Words(), limits(num_pages=16)) as engine:
        yield engine
    assert engine.stats().pages_used == 0


def test_deltas_carry_the_answer(engine: Engine) -> None:
    client = Client()
    engine.submit([1, 2, 3], replace(GREEDY, max_tokens=5, logprobs=1), client)
    last = client.wait()
    assert client.tokens == answer([1, 2, 3], 5)
    assert client.text == "".join(map(word, client.tokens))
    assert [len(delta.logprobs) for delta in client.deltas] == [1] * 5
    assert [delta.finish_reason for delta in client.deltas] == [None] * 4 + ["length"]
    assert last.stop_reason is None and last.error is None


def test_requests_from_many_threads_are_not_mixed_up(engine: Engine) -> None:
    clients = [Client() for _ in range(24)]

    def submit(n: int) -> None:
        for k in range(n, 24, 6):
            engine.submit([k, 5, k % 3], GREEDY, clients[k])

    threads = [threading.Thread(target=submit, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for k, client in enumerate(clients):
        client.wait()
        assert client.tokens == answer([k, 5, k % 3], 12)


def prompt_that_ends() -> tuple[list[int], list[int]]:
    """A prompt whose answer comes to EOS after a few tokens."""
    for first in range(VOCAB):
        said = answer([first, 1], 12)
        if said[-1] == EOS and len(said) > 3:
            return [first, 1], said
    raise AssertionError("the fake model never stops")


def test_eos_ends_the_answer_and_is_counted_but_not_shown(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    client = Client()
    engine.submit(prompt, replace(GREEDY, logprobs=0), client)
    last = client.wait()
    assert (last.finish_reason, last.stop_reason) == ("stop", None)
    assert client.tokens == said and last.token_ids == (EOS,)
    assert last.logprobs[0].token_id == EOS
    assert client.text == "".join(map(word, said[:-1]))
    assert engine.stats().generation_tokens == len(said)


def test_ignore_eos_goes_on_to_max_tokens(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    (whole,) = engine.generate([(prompt, replace(GREEDY, ignore_eos=True))])
    assert len(whole.token_ids) == 12 and list(whole.token_ids[: len(said)]) == said
    assert whole.finish_reason == "length"


def test_min_tokens_keeps_eos_and_stop_tokens_away(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    params = replace(GREEDY, min_tokens=len(said), stop_token_ids=(said[0],))
    (whole,) = engine.generate([(prompt, params)])
    assert len(whole.token_ids) > len(said)
    assert not {EOS, said[0]} & set(whole.token_ids[: len(said)])


def test_a_stop_token_ends_the_answer_and_is_named(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    (whole,) = engine.generate([(prompt, replace(GREEDY, stop_token_ids=(said[2],)))])
    cut = said.index(said[2]) + 1
    assert list(whole.token_ids) == said[:cut]
    assert (whole.finish_reason, whole.stop_reason) == ("stop", said[2])
    assert whole.text == "".join(map(word, said[: cut - 1]))


def test_a_stop_string_across_tokens_ends_the_answer(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    text = "".join(map(word, said[:-1]))
    stop = text[4:7]  # the end of one word and the beginning of the next
    (whole,) = engine.generate([(prompt, replace(GREEDY, stop=("nowhere", stop)))])
    assert (whole.finish_reason, whole.stop_reason) == ("stop", stop)
    assert whole.text == text[: text.find(stop)]
    assert len(whole.token_ids) < len(said)


def test_a_stop_string_counts_only_after_min_tokens(engine: Engine) -> None:
    prompt, said = prompt_that_ends()
    params = replace(GREEDY, stop=(" ",), min_tokens=2)
    (whole,) = engine.generate([(prompt, params)])
    assert list(whole.token_ids[:2]) == said[:2] and len(whole.token_ids) > 2
    assert whole.text.startswith(word(said[0]) + word(said[1])[:-1])
    assert (whole.finish_reason, whole.stop_reason) == ("stop", " ")


def test_without_max_tokens_the_window_ends_the_answer(model: Fragile) -> None:
    with Engine(model, Words(), limits(max_model_len=20)) as engine:
        answers = engine.generate([([1, 2], ENDLESS), ([3] * 19, ENDLESS)])
    assert [len(a.token_ids) for a in answers] == [18, 1]
    assert {a.finish_reason for a in answers} == {"length"}


def test_a_prompt_that_fills_the_window_is_refused_with_both_numbers(model: Fragile) -> None:
    engine = Engine(model, Words(), limits(max_model_len=20))
    with pytest.raises(
        UsageError, match=r"^This model's maximum context length is 20 tokens\. However, .* 23 "
    ):
        engine.submit([1] * 23, GREEDY, Client())


def test_a_request_that_never_fits_the_cache_is_refused(engine: Engine) -> None:
    """16 pages of 4 hold a window of 64, so the limit is lowered."""
    small = Engine(Fragile(), Words(), limits(num_pages=4))
    with pytest.raises(UsageError, match="may grow to 18 tokens, but the KV cache holds 16"):
        small.submit([1] * 6, GREEDY, Client())
    small.submit([1] * 5, GREEDY, Client())


def test_cancel_frees_the_pages_before_the_next_step(engine: Engine, model: Fragile) -> None:
    client, other = Client(at_first=model.open.clear), Client()
    request_id = engine.submit([1, 2, 3], ENDLESS, client)
    assert client.began.wait(WAIT)  # the engine is now held at the start of its second step
    engine.submit([4, 5], GREEDY, other)
    engine.cancel(request_id)
    model.open.set()
    assert client.wait().finish_reason == "abort"
    other.wait()
    # One more step at most, the one that was under way.
    assert len(client.tokens) <= 2
    assert engine.drain(WAIT) and engine.stats().pages_used == 0
    engine.cancel(request_id)  # has ended: no effect


def test_a_request_can_be_cancelled_before_it_ran(model: Fragile) -> None:
    engine, client = Engine(model, Words(), limits()), Client()
    engine.cancel(engine.submit([1], GREEDY, client))
    with engine:
        assert client.wait().finish_reason == "abort"
    assert model.steps == []


def test_drain_finishes_what_was_accepted_and_refuses_the_rest(
    engine: Engine, model: Fragile
) -> None:
    model.open.clear()
    clients = [Client() for _ in range(12)]  # more than run at once
    for client in clients:
        engine.submit([1, 2], GREEDY, client)
    assert not engine.drain(timeout=0)
    with pytest.raises(EngineDraining):
        engine.submit([1], GREEDY, Client())
    model.open.set()
    assert engine.drain(WAIT)
    assert all(client.deltas[-1].finish_reason in ("stop", "length") for client in clients)


def test_close_aborts_what_is_left(model: Fragile) -> None:
    engine = Engine(model, Words(), limits(max_num_seqs=1)).start()
    clients = [Client() for _ in range(3)]
    model.open.clear()
    for client in clients:
        engine.submit([1, 2], ENDLESS, client)
    closing = threading.Thread(target=engine.close)
    closing.start()
    with pytest.raises(EngineDraining):
        while True:  # until `close` has come as far as refusing
            engine.submit([1, 2], ENDLESS, more := Client())
            clients.append(more)
    model.open.set()
    closing.join(WAIT)
    assert not closing.is_alive()
    assert {client.wait().finish_reason for client in clients} == {"abort"}
    engine.close()
    with pytest.raises(EngineDraining):
        engine.submit([1], GREEDY, Client())


def test_an_engine_that_never_ran_can_be_closed(model: Fragile) -> None:
    engine, client = Engine(model, Words(), limits()), Client()
    engine.submit([1], GREEDY, client)
    engine.close()
    assert client.wait().finish_reason == "abort"


def test_a_callback_that_raises_ends_its_request_alone(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise ValueError("this client is broken")

    bad, good = Client(at_first=broken), Client()
    engine.submit([1, 2], ENDLESS, bad)
    engine.submit([1, 3], GREEDY, good)
    assert good.wait().finish_reason in ("stop", "length")
    assert engine.drain(WAIT)
    assert len(bad.deltas) == 1 and not bad.ended.is_set()
    assert "this client is broken" in caplog.text


def test_a_failing_step_ends_its_requests_and_the_engine_goes_on(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    engine.submit([Fragile.BAD, 1], GREEDY, client)
    last = client.wait()
    assert last.finish_reason == "error" and last.error is not None
    assert "secret" not in last.error and last.error.endswith(".")
    assert "secret address 0x7f" in caplog.text, "the log has the traceback"
    assert engine.stats().failed_steps == 1 and engine.stats().healthy
    for _ in range(2):
        with pytest.raises(EngineFailure, match="log"):
            engine.generate([([Fragile.BAD], GREEDY)])
    assert not engine.stats().healthy
    assert engine.generate([([1, 2], GREEDY)])[0].token_ids
    assert engine.stats().healthy and engine.stats().pages_used == 0


def test_logits_that_are_not_numbers_end_their_request_alone() -> None:
    class Poisoned(Fragile):
        def logits(self, hidden_TD: Tensor) -> Tensor:
            return super().logits(hidden_TD).where(hidden_TD != self.poison, torch.nan)

        poison = -1

    poisoned = Poisoned()
    with Engine(poisoned, Words(), limits()) as engine:
        poisoned.open.clear()
        poisoned.poison = prefix_hash([1, 1])
        clients = [Client(), Client()]
        for n, client in enumerate(clients):
            engine.submit([n, n], GREEDY, client)
        poisoned.open.set()
        assert clients[1].wait().finish_reason == "error"
        assert "finite" in (clients[1].deltas[-1].error or "")
        assert clients[0].wait().finish_reason in ("stop", "length")


def test_generate_keeps_the_order_of_the_prompts(engine: Engine) -> None:
    prompts = [[n, n + 1] for n in range(10)]
    together = engine.generate([(prompt, GREEDY) for prompt in prompts])
    single = [engine.generate([(prompt, GREEDY)])[0] for prompt in prompts]
    assert together == single


def test_generate_cancels_the_others_when_a_prompt_is_refused(engine: Engine) -> None:
    with pytest.raises(UsageError, match="empty"):
        engine.generate([([1], ENDLESS), ([], GREEDY)])
    assert engine.drain(WAIT)


def test_a_seed_repeats_its_draws_and_requests_without_one_differ(model: Fragile) -> None:
    free = SamplingParams(max_tokens=12, ignore_eos=True)
    seeded = replace(free, seed=11)
    prompts = [([1, 2], seeded), ([1, 2], free), ([1, 2], free), ([1, 2], seeded)]
    runs = []
    for seed in (0, 0, 1000):
        with Engine(model, Words(), limits(), seed=seed) as engine:
            runs.append([answer.token_ids for answer in engine.generate(prompts)])
    first, second, other = runs
    assert first == second
    assert first[0] == first[3] == other[0]
    assert len({*first, *other}) == 5, "one seeded answer, and four that differ"


def test_stats_count_tokens_and_pages(engine: Engine, model: Fragile) -> None:
    client = Client(at_first=model.open.clear)
    engine.submit([1] * 9, ENDLESS, client)
    assert client.began.wait(WAIT)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_total) == (1, 0, 16)
    assert stats.pages_used == 3 and stats.prompt_tokens == 9
    engine.submit([1], GREEDY, Client())
    assert engine.stats().waiting == 1
    model.open.set()


def test_an_onlooker_that_fails_after_a_step_ends_the_requests_of_it_alone(engine: Engine) -> None:
    """What hands the deltas on may meet one that it cannot."""
    calls: list[None] = []

    def fail_once() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise RuntimeError("secret address 0x7f")

    engine.after_step = fail_once
    client, other = Client(), Client()
    engine.submit([1, 2], ENDLESS, client)
    last = client.wait()
    assert last.finish_reason == "error" and "log has the reason" in (last.error or "")
    engine.submit([3], GREEDY, other)
    assert other.wait().finish_reason in ("stop", "length")
