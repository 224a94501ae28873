"""Health, probes, the self-test, and what is answered while the model is loaded."""

import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from glm_portable import GLM
from glm_portable.engine.engine import Engine, EngineDraining
from glm_portable.engine.types import Delta, SamplingParams, TokenLogprob
from glm_portable.errors import UsageError
from glm_portable.serve.loading import answering
from glm_portable.serve.self_test import BOUND, SelfTest, drift
from glm_portable.serve.server import bind
from glm_portable.serve.settings import ServerSettings
from tests.engine.fake_model import FakeModel, Words, limits
from tests.serve.conversation import HI
from tests.serve.fake_engine import (
    WAIT_S,
    FakeEngine,
    Running,
    Threaded,
    fake_server,
    fake_service,
    serving,
)

CHAT = "/v1/chat/completions"
PROBES = ("/health", "/ready", "/ping")


def numbers(moved: float) -> list[Delta]:
    """The answer to a self-test whose log probabilities are this far off."""
    entry = TokenLogprob(1, -1.0 - moved, ((1, -1.0 - moved), (2, -2.0 - moved)))
    return [Delta((1,), "", (entry,), finish_reason="length")]


def test_probes_tell_live_from_ready(server: Running, http: httpx.Client) -> None:
    for path in (*PROBES, "/live"):
        assert http.get(path).json() == {"status": "ok"}
        assert http.head(path).status_code == 200
    server.engine.stats_now = replace(server.engine.stats_now, healthy=False)
    for path in PROBES:
        assert http.get(path).status_code == 503
        assert http.head(path).status_code == 503
    assert http.get("/live").status_code == 200


def test_a_full_queue_is_healthy(http: httpx.Client, server: Running) -> None:
    server.engine.stats_now = replace(server.engine.stats_now, waiting=10_000)
    assert http.get("/health").status_code == 200


def test_a_drift_makes_the_server_unhealthy_until_it_is_gone() -> None:
    now = [0.0]
    with fake_server() as running, httpx.Client(base_url=running.url) as http:
        running.service.self_test = SelfTest([1, 2, 3], clock=lambda: now[0])

        def check(moved: float) -> httpx.Response:
            now[0] += 60
            running.engine.script = lambda request: numbers(moved)
            return http.get("/health", params={"check": "numerics"})

        assert check(0).json()["numerics"] == {"drift": 0.0, "bound": BOUND}
        assert check(0.5 * BOUND).status_code == 200
        failed = check(2 * BOUND)
        assert failed.status_code == 503
        assert "self-test failed" in failed.json()["error"]["message"]
        for path in PROBES:
            assert http.get(path).json() == failed.json()
        assert http.post(CHAT, json={"messages": HI}).status_code == 200, "it is still tried"
        assert check(0).status_code == 200 and http.get("/health").status_code == 200


def test_a_self_test_that_the_engine_fails(http: httpx.Client, server: Running) -> None:
    server.service.self_test = SelfTest([1])
    error = Delta(finish_reason="error", error="The model returned no finite logits.")
    server.engine.script = lambda request: [error]
    answer = http.get("/health?check=numerics")
    assert answer.status_code == 503 and "no finite logits" in answer.text
    server.service.self_test = SelfTest([1])


def test_self_tests_run_one_at_a_time_and_not_too_often() -> None:
    now = [100.0]
    with fake_server() as running, httpx.Client(base_url=running.url, timeout=20) as http:
        running.service.self_test = SelfTest([1, 2, 3], clock=lambda: now[0])
        running.engine.script = lambda request: []
        answers: list[int] = []

        def ask() -> None:
            answer = httpx.get(f"{running.url}/health?check=numerics", timeout=20)
            answers.append(answer.status_code)

        askers = [threading.Thread(target=ask) for _ in range(4)]
        for asker in askers:
            asker.start()
        request = running.engine.wait_for(1)[0]
        assert http.get("/health").status_code == 200, "nobody waits for it but who asked"
        for delta in numbers(0):
            request.send(delta)
        for asker in askers:
            asker.join()
        assert answers == [200] * 4
        now[0] += 1
        assert http.get("/health?check=numerics").status_code == 200
        assert len(running.engine.requests) == 1


def test_an_unknown_check_is_refused(http: httpx.Client) -> None:
    assert http.get("/health?check=spelling").status_code == 400


class Spoilt(FakeModel):
    """Computes something else once `wrong` is set; nothing finite at None."""

    wrong: bool | None = False

    def logits(self, hidden_TD: Any) -> Any:
        found = super().logits(hidden_TD)
        if self.wrong is None:
            return found * float("nan")
        return found.roll(1, -1) if self.wrong else found


def test_the_self_test_over_a_real_engine() -> None:
    """Through the scheduler, among other requests, and with a model that goes wrong."""
    model = Spoilt()
    with Engine(model, Words(), limits()) as engine, fake_server() as running:
        running.service.engine = Threaded(engine)
        minutes = iter(range(0, 10**6, 60))
        running.service.self_test = SelfTest([1, 2, 3, 4, 5], clock=minutes.__next__)
        running.service.self_test.record(engine)
        ended = threading.Event()
        other = SamplingParams(temperature=0, ignore_eos=True, max_tokens=40)
        engine.submit([9, 8], other, lambda d: ended.set() if d.finish_reason else None)
        check = f"{running.url}/health?check=numerics"
        assert httpx.get(check).json()["numerics"]["drift"] == 0
        assert ended.wait(20)
        model.wrong = True
        assert httpx.get(check).status_code == 503
        model.wrong = False
        assert httpx.get(check).status_code == 200
        assert engine.stats().pages_used == 0
        running.service.engine = FakeEngine()


def test_weights_that_changed_are_named_while_requests_run() -> None:
    """One expert of the pocket model, which the text of the self-test may not visit."""
    glm = GLM.load(backend="reference", dtype="float32")
    moe = glm.model.layers[-1].moe
    assert moe is not None
    down, whole = moe.down.data[3], moe.down.data[3].clone()
    capacity = glm.limits(memory_bytes=2**26, max_model_len=4096)
    with Engine(glm.model, glm.tokenizer, capacity) as engine, fake_server() as running:
        running.service.engine = Threaded(engine)
        minutes = iter(range(0, 10**6, 60))
        text = glm.tokenizer.encode("I am GLM")
        running.service.self_test = SelfTest(text, clock=minutes.__next__)
        running.service.self_test.record(engine)
        ended = threading.Event()
        other = SamplingParams(temperature=0, ignore_eos=True, max_tokens=4000)
        number = engine.submit(text, other, lambda d: ended.set() if d.finish_reason else None)

        def check() -> httpx.Response:
            return httpx.get(f"{running.url}/health?check=numerics", timeout=WAIT_S)

        assert check().status_code == 200
        down.zero_()
        failed = check()
        name = f"expert 3 of layers[{len(glm.model.layers) - 1}].moe.down.data"
        assert failed.status_code == 503 and f"{name} has changed" in failed.text
        assert httpx.get(f"{running.url}/health").status_code == 503
        down.copy_(whole)
        assert check().status_code == 200
        assert not ended.is_set(), "all of this was while a request ran"
        engine.cancel(number)
        assert ended.wait(WAIT_S)
        running.service.engine = FakeEngine()


def test_a_fault_of_the_weights_fails_the_self_test_by_itself() -> None:
    with fake_server() as running, httpx.Client(base_url=running.url) as http:
        running.service.self_test = SelfTest([1], clock=iter(range(0, 600, 60)).__next__)
        running.engine.script = lambda request: numbers(0)
        running.engine.fault = "norm has changed since the start"
        answer = http.get("/health?check=numerics")
        assert answer.status_code == 503
        said = "The self-test failed: norm has changed since the start."
        assert answer.json()["error"]["message"] == said


@pytest.mark.parametrize("method", ["submit", "examine"])
def test_an_engine_that_ends_before_its_self_test_fails_none(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def ended(*_: object, **__: object) -> None:
        raise EngineDraining("The engine has ended.")

    with fake_server() as running, httpx.Client(base_url=running.url) as http:
        running.service.self_test = SelfTest([1])
        running.engine.script = lambda request: numbers(0)
        monkeypatch.setattr(running.engine, method, ended)
        answer = http.get("/health?check=numerics")
        assert answer.status_code == 503 and "The engine has ended." in answer.text
        assert running.service.self_test.failure is None


def test_a_model_without_finite_numbers_does_not_start() -> None:
    model = Spoilt()
    model.wrong = None
    with Engine(model, Words(), limits()) as engine:
        with pytest.raises(UsageError, match="self-test.*finite"):
            SelfTest([1, 2]).record(engine)


def test_drift_is_compared_as_far_as_the_texts_agree() -> None:
    def entry(token: int, *top: tuple[int, float]) -> TokenLogprob:
        return TokenLogprob(token, -1, top)

    then = [entry(1, (1, -1.0), (2, -1.1)), entry(3, (3, -1.0))]
    assert drift(then, then) == 0
    assert drift(then, [entry(1, (1, -1.2), (2, -1.1)), then[1]]) == pytest.approx(0.2 / 3)
    tie = [entry(2, (2, -1.0), (1, -1.1)), entry(9, (9, -0.1))]
    assert drift(then, tie) == pytest.approx(0.1)
    gone = [entry(1, (1, -1.0), (7, -5.0)), then[1]]
    assert drift(then, gone) == pytest.approx(3.9 / 3)
    assert drift([entry(1, (1, -1.0), (2, -float("inf")))], [entry(1, (1, -1.0))]) == 0


def test_while_the_model_loads_the_port_says_so() -> None:
    settings = ServerSettings(port=0)
    sock = bind(settings)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    with answering(sock, settings):
        assert httpx.get(f"{url}/live").status_code == 200
        for answer in (httpx.get(f"{url}/ready"), httpx.post(url + CHAT, json={"messages": HI})):
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "loading"
            assert answer.headers["retry-after"] and answer.headers["x-request-id"]
        assert httpx.head(f"{url}/health").status_code == 503
        message = httpx.post(f"{url}/v1/messages", headers={"x-request-id": "a"}, json={})
        assert message.json()["error"]["type"] == "overloaded_error"
        assert message.headers["request-id"] == message.headers["x-request-id"] == "a"
    sock.close()


def test_the_server_takes_the_port_over() -> None:
    """Whoever connects between the two is answered by the second."""
    settings = ServerSettings(port=0)
    sock = bind(settings)
    with answering(sock, settings):
        pass
    address = sock.getsockname()
    found: list[int] = []
    waiting = threading.Thread(
        target=lambda: found.append(
            httpx.get(f"http://127.0.0.1:{address[1]}/health", timeout=20).status_code
        )
    )
    waiting.start()
    with serving(fake_service(FakeEngine(), settings), sock):
        waiting.join()
    assert found == [200]
