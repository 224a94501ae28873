"""Continuous batching end to end on a model that notices every mix-up in its cache."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor

from glm_portable.engine.core import EngineCore
from glm_portable.engine.types import Delta, SamplingParams
from glm_portable.ops import KVCache, Step
from tests.engine.fake_model import EOS, VOCAB, FakeModel, answer, core, request, word


@dataclass
class Case:
    """A request, the step before which it arrives, and the one before which it is cancelled."""

    prompt: list[int]
    max_tokens: int
    arrival: int
    cancel: int | None
    seed: int | None
    priority: int = 0
    salt: str = ""
    deltas: list[Delta] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]

    def params(self) -> SamplingParams:
        return SamplingParams(
            temperature=0 if self.seed is None else 1, seed=self.seed, max_tokens=self.max_tokens
        )

    def submit(self, engine: EngineCore, name: str) -> None:
        length = len(self.prompt) + self.max_tokens
        queued = request(name, self.prompt, self.params(), self.deltas.append, length)
        queued.sequence.priority, queued.sequence.salt = self.priority, self.salt
        engine.add(queued)


CASES = st.lists(
    st.builds(
        Case,
        # Some of many tokens, and some that begin alike.
        prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10)
        | st.integers(1, 10).map(lambda length: [3] * length),
        max_tokens=st.integers(1, 10) | st.just(10),
        arrival=st.integers(0, 6),
        cancel=st.none() | st.integers(0, 20),
        seed=st.none() | st.integers(0, 3),
        priority=st.integers(0, 2),
        salt=st.sampled_from(["", "", "other"]),
    ),
    min_size=1,
    max_size=8,
)


def run(engine: EngineCore, cases: list[Case]) -> None:
    """Play the arrivals and cancellations, checking the page tables after every step."""
    now = 0
    while engine.requests or any(case.arrival >= now for case in cases):
        for name, case in enumerate(cases):
            if case.arrival == now:
                case.submit(engine, str(name))
            if case.cancel == now:
                engine.abort(str(name))
        engine.step()
        tables = [r.sequence.block_table for r in engine.requests.values()]
        held = [page for table in tables for page in table]
        shared = len(held) - len(set(held))
        assert len(set(held)) == engine.stats().pages_used
        assert not shared or engine.limits.enable_prefix_caching
        now += 1
        assert now < 1000, "requests are starving"


def alone(case: Case) -> list[int]:
    """What the request answers with the whole engine to itself."""
    if case.seed is None:
        return answer(case.prompt, case.max_tokens)
    case = Case(case.prompt, case.max_tokens, 0, None, case.seed)
    run(core(FakeModel()), [case])
    return case.tokens


@given(
    CASES,
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 24),
    st.sampled_from([True, True, False]),
    st.sampled_from(["fcfs", "priority"]),
)
@settings(max_examples=150, deadline=None)
def test_an_answer_does_not_depend_on_neighbours(
    cases: list[Case],
    spare: int,
    page_size: int,
    max_num_seqs: int,
    budget: int,
    prefix_caching: bool,
    policy: str,
) -> None:
    """Arrivals, cancellations, chunks, shared pages, priorities and preemption in any mixture."""
    engine = core(
        FakeModel(),
        num_pages=-(-20 // page_size) + spare,  # the longest request fits, two of them may not
        page_size=page_size,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=prefix_caching,
        scheduling_policy=policy,
    )
    run(engine, cases)
    for case in cases:
        expected = alone(case)
        finished = [delta.finish_reason for delta in case.deltas if delta.finish_reason]
        if case.cancel is not None and finished == ["abort"]:
            assert case.tokens == expected[: len(case.tokens)]
        elif case.deltas or case.cancel is None:
            assert case.tokens == expected
            assert finished == ["stop" if expected[-1] == EOS else "length"]
            shown = [token for token in expected if token != EOS]
            assert "".join(delta.text for delta in case.deltas) == "".join(map(word, shown))
    stats = engine.stats()
    event(f"preempted: {stats.preemptions > 0}, hit: {stats.prefix_cache_hits > 0}")
    found = [case.deltas[0].num_cached_tokens for case in cases if case.tokens]
    assert sum(filter(None, found)) <= stats.prefix_cache_hits <= stats.prefix_cache_queries
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)
    assert stats.generation_tokens == sum(len(case.tokens) for case in cases)
    assert stats.failed_steps == 0


def test_preemption_happens_and_is_not_seen() -> None:
    """The property above would hold emptily if the pools were large enough."""
    cases = [Case([n, n + 1], 16, 0, None, None) for n in range(4)]
    engine = core(FakeModel(eos=(VOCAB,)), num_pages=10, page_size=2, enable_prefix_caching=False)
    for name, case in enumerate(cases):
        params = SamplingParams(temperature=0, ignore_eos=True)
        engine.add(request(str(name), case.prompt, params, case.deltas.append, 18))
    while engine.requests:
        engine.step()
    assert engine.stats().preemptions >= 3
    for case in cases:
        assert case.tokens == answer(case.prompt, 16, eos=None)
        assert len([d for d in case.deltas if d.token_ids]) == 16  # none twice, none lost
    assert engine.stats().prompt_tokens == 8


def test_logits_are_computed_for_rows_that_sample_only() -> None:
    class Counting(FakeModel):
        def logits(self, hidden_TD: Tensor) -> Tensor:
            rows.append(len(hidden_TD))
            return super().logits(hidden_TD)

    rows: list[int] = []
    model = Counting()
    cases = [Case([1] * 10, 3, 0, None, None), Case([2] * 3, 3, 0, None, None)]
    run(core(model, max_num_batched_tokens=6), cases)
    assert model.steps[:2] == [[6], [4, 2]]
    assert rows[0] == 1  # of the second step; after the first no prompt is complete


def ask(engine: EngineCore, prompt: list[int], salt: str = "", max_tokens: int = 4) -> list[Delta]:
    case = Case(prompt, max_tokens, 0, None, None, 0, salt)
    run(engine, [case])
    return case.deltas


def test_the_first_delta_tells_what_was_found_and_the_answer_is_the_same() -> None:
    model = FakeModel(eos=(VOCAB,))
    engine, prompt = core(model, page_size=4), [1] * 10
    cold, warm, salted = (ask(engine, prompt, salt) for salt in ("", "", "x"))
    assert [d.num_cached_tokens for d in cold] == [0, None, None, None]
    assert [d.num_cached_tokens for d in warm] == [8, None, None, None]
    assert salted[0].num_cached_tokens == 0
    for deltas in (cold, warm, salted):
        assert [d.token_ids[0] for d in deltas] == answer(prompt, 4, eos=None)
    assert [step[0] for step in model.steps] == [10, 1, 1, 1, 2, 1, 1, 1, 10, 1, 1, 1]
    stats = engine.stats()
    assert (stats.prefix_cache_queries, stats.prefix_cache_hits, stats.pages_used) == (30, 8, 0)


def test_the_next_turn_finds_the_answer_too() -> None:
    engine = core(FakeModel(eos=(VOCAB,)), page_size=4)
    said = [token for d in ask(engine, [1] * 3, max_tokens=10) for token in d.token_ids]
    following = ask(engine, [1] * 3 + said + [5])
    assert following[0].num_cached_tokens == 12  # of 13, of which the last was never computed


def test_nothing_of_a_failed_step_is_found() -> None:
    class Failing(FakeModel):
        fails = True

        def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
            hidden_TD = super().forward(ids_T, step, caches)
            if self.fails:
                raise RuntimeError("in the last layer")
            return hidden_TD

    model = Failing()
    engine = core(model)
    assert ask(engine, [1] * 10)[-1].finish_reason == "error"
    model.fails = False
    assert ask(engine, [1] * 10)[0].num_cached_tokens == 0
    assert ask(engine, [1] * 10)[0].num_cached_tokens == 8


def test_pages_that_gave_no_number_are_not_found() -> None:
    class Poisoned(FakeModel):
        poisoned = False

        def logits(self, hidden_TD: Tensor) -> Tensor:
            logits_TV = super().logits(hidden_TD)
            return logits_TV * float("nan") if self.poisoned else logits_TV

    model = Poisoned()
    engine = core(model)
    ask(engine, [1] * 10)
    model.poisoned = True
    assert ask(engine, [1] * 14)[-1].finish_reason == "error"
    model.poisoned = False
    assert ask(engine, [1] * 14)[0].num_cached_tokens == 0
    assert ask(engine, [1] * 14)[0].num_cached_tokens == 12
    assert engine.pool.num_used == 0


def test_the_cache_can_be_switched_off_and_dropped() -> None:
    engine = core(FakeModel(), enable_prefix_caching=False)
    assert [ask(engine, [1] * 10)[0].num_cached_tokens for _ in range(2)] == [0, 0]
    assert engine.stats().prefix_cache_queries == 0
    engine = core(FakeModel())
    ask(engine, [1] * 10)
    engine.pool.forget()
    assert ask(engine, [1] * 10)[0].num_cached_tokens == 0
