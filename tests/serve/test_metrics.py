"""What Prometheus reads, through its own parser, against what happened."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from glm_portable.engine.engine import Engine
from glm_portable.engine.observer import FinishedRequest
from glm_portable.engine.types import SamplingParams, Timeline
from glm_portable.serve.request_metrics import RequestMetrics, steps_1_2_5
from glm_portable.serve.service import Service
from glm_portable.serve.settings import ServerSettings
from tests.engine.fake_model import FakeModel, Words, limits
from tests.serve.conversation import HI
from tests.serve.fake_engine import CHAT as TEMPLATE
from tests.serve.fake_engine import TOKENIZER, WINDOW, Running, Threaded, fake_server, says, serving

CHAT = "/v1/chat/completions"
HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_time_per_output_token_seconds", "request_queue_time_seconds"),
    *("request_inference_time_seconds", "request_prefill_time_seconds", "request_params_n"),
    *("request_decode_time_seconds", "request_prompt_tokens", "request_generation_tokens"),
    *("request_params_max_tokens", "iteration_tokens_total"),
    "request_prefill_kv_computed_tokens",
)
GAUGES = (
    *("num_requests_running", "num_requests_waiting", "num_requests_waiting_by_reason"),
    *("kv_cache_usage_perc", "cache_config_info"),
)
COUNTERS = (
    *("prompt_tokens", "generation_tokens", "num_preemptions", "request_success"),
    *("prefix_cache_queries", "prefix_cache_hits"),
    *("spec_decode_num_drafts", "spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens"),
)


@pytest.fixture
def fresh() -> Iterator[Running]:
    with fake_server(api_keys=("key",)) as running:
        yield running


def read(url: str) -> dict[str, Any]:
    """Sample name and the labels beside model_name and engine -> value."""
    found = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics").text):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model_name", "engine")}
            found["".join([sample.name, *(f",{k}={v}" for k, v in labels.items())])] = sample.value
    return found


def test_the_names_of_vllm_are_there(http: httpx.Client) -> None:
    families = {f.name: f for f in text_string_to_metric_families(http.get("/metrics").text)}
    for names, kind in ((HISTOGRAMS, "histogram"), (GAUGES, "gauge"), (COUNTERS, "counter")):
        for name in names:
            family = families[f"vllm:{name}"]
            assert family.type == kind, name
            assert family.documentation
            for sample in family.samples:
                assert sample.labels["engine"] == "0"
                assert sample.labels.get("model_name", "pocket") == "pocket"


def test_it_is_plain_text_and_open(fresh: Running) -> None:
    answer = httpx.get(f"{fresh.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    head = httpx.head(f"{fresh.url}/metrics")
    assert head.status_code == 200 and head.content == b""


def test_numbers_of_the_engine(http: httpx.Client) -> None:
    """Those that the fake engine claims."""
    found = read(str(http.base_url))
    assert found["vllm:num_requests_running"] == 1
    assert found["vllm:num_requests_waiting"] == 0
    assert found["vllm:num_requests_waiting_by_reason,reason=capacity"] == 0
    assert found["vllm:kv_cache_usage_perc"] == 0.75
    assert found["vllm:prompt_tokens_total"] == 50
    assert found["vllm:generation_tokens_total"] == 60
    assert found["vllm:num_preemptions_total"] == 7
    assert found["glm_portable_engine_steps_total"] == 80
    assert found["glm_portable_engine_failed_steps_total"] == 9
    assert found["vllm:prefix_cache_queries_total"] == 45
    assert found["vllm:prefix_cache_hits_total"] == 35
    assert found["vllm:spec_decode_num_drafts_total"] == 10
    assert found["vllm:spec_decode_num_draft_tokens_total"] == 20
    assert found["vllm:spec_decode_num_accepted_tokens_total"] == 15
    assert found["vllm:spec_decode_num_accepted_tokens_per_pos_total,position=0"] == 9
    assert found["vllm:spec_decode_num_accepted_tokens_per_pos_total,position=1"] == 6


def test_http_requests_are_counted_by_template(fresh: Running) -> None:
    with httpx.Client(base_url=fresh.url, headers={"authorization": "Bearer key"}) as http:
        fresh.engine.script = lambda request: says("Hello.")
        for stream in (False, True):
            assert http.post(CHAT, json={"messages": HI, "n": 2, "stream": stream}).text
        assert http.post(CHAT, json={"messages": []}).status_code == 400
        assert http.get("/v1/models/pocket").status_code == 200
        assert http.get("/v1/models/other").status_code == 404
        for path in ("/a", "/b"):
            assert http.get(path).status_code == 404
        assert http.get("/c", headers={"authorization": ""}).status_code == 401
        assert http.request("BREW", "/d").status_code in (404, 405)
        assert http.head("/health").status_code == 200
    found = read(fresh.url)
    count = "glm_portable_http_requests_total,method={},path={},status={}".format
    assert found[count("POST", CHAT, 200)] == 2
    assert found[count("POST", CHAT, 400)] == 1
    assert found[count("GET", "/v1/models/{name:path}", 200)] == 1
    assert found[count("GET", "/v1/models/{name:path}", 404)] == 1
    assert found[count("GET", "other", 404)] == 2
    assert found[count("GET", "other", 401)] == 1
    assert found[count("HEAD", "/health", 200)] == 1
    assert any(name.startswith("glm_portable_http_requests_total,method=other") for name in found)
    errors = "glm_portable_http_errors_total,code={}".format
    assert found[errors("invalid_api_key")] == 1
    assert found[errors("model_not_found")] == 1
    assert found[errors("invalid_value")] == 1
    assert found["vllm:request_params_n_sum"] == 4
    assert found["glm_portable_http_requests_in_progress"] == 1, "this one"


def test_a_self_test_is_no_request_of_a_client(fresh: Running) -> None:
    assert httpx.get(f"{fresh.url}/health?check=numerics").status_code == 200
    assert read(fresh.url)["vllm:request_params_n_count"] == 0


def test_times_of_requests_over_a_real_engine() -> None:
    observed = RequestMetrics(64)
    with Engine(FakeModel(), Words(), limits(), observer=observed) as engine:
        service = Service(
            Threaded(engine), TEMPLATE, TOKENIZER, "glm45", WINDOW, ServerSettings(port=0), observed
        )
        with serving(service) as (url, _, _):
            for length in (1, 5):
                params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=length)
                engine.generate([([1, 2, 3], params)])
            found = read(url)
    assert found["vllm:request_success_total,finished_reason=length"] == 2
    assert found["vllm:request_success_total,finished_reason=stop"] == 0
    assert found["vllm:time_to_first_token_seconds_count"] == 2
    assert found["vllm:inter_token_latency_seconds_count"] == 4
    assert found["vllm:request_time_per_output_token_seconds_count"] == 1, "of one token: none"
    for name in ("e2e_request_latency", "request_queue_time", "request_prefill_time"):
        assert found[f"vllm:{name}_seconds_count"] == 2
    assert found["vllm:request_prompt_tokens_sum"] == 6
    assert found["vllm:request_generation_tokens_sum"] == 6
    assert found["vllm:request_params_max_tokens_sum"] == 6
    assert found["vllm:iteration_tokens_total_sum"] == 2 * 3 + 4
    assert found["vllm:iteration_tokens_total_count"] == 6


def finished(**times: float) -> FinishedRequest:
    return FinishedRequest("1", "stop", 10, 4, 5, None, Timeline(0.0, **times))


def test_each_time_is_between_its_own_moments() -> None:
    metrics = RequestMetrics(8192)
    metrics.on_finish(finished(scheduled=1.0, first_token=3.0, last_token=11.0))
    metrics.on_finish(finished())  # cancelled while it waited: it has no times
    found = {}
    for family in metrics.families({"model_name": "m", "engine": "0"}):
        for sample in family.samples:
            if sample.name.endswith("_sum"):
                found[sample.name] = sample.value
    assert found["vllm:request_queue_time_seconds_sum"] == 1
    assert found["vllm:request_prefill_time_seconds_sum"] == 2
    assert found["vllm:request_decode_time_seconds_sum"] == 8
    assert found["vllm:request_inference_time_seconds_sum"] == 10
    assert found["vllm:e2e_request_latency_seconds_sum"] == 11
    assert found["vllm:request_time_per_output_token_seconds_sum"] == 2
    assert found["vllm:request_prompt_tokens_sum"] == 20
    assert found["vllm:request_prefill_kv_computed_tokens_sum"] == 12
    assert found["vllm:request_params_max_tokens_sum"] == 0


def test_buckets() -> None:
    assert steps_1_2_5(100) == [1, 2, 5, 10, 20, 50, 100]
    assert steps_1_2_5(8192)[-1] == 5000
    metrics = RequestMetrics(100)
    for seconds in (0.01, 0.0101, 100):
        metrics.on_next_tokens(seconds)
    family = next(f for f in metrics.families({}) if f.name == "vllm:inter_token_latency_seconds")
    below = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert (below["0.01"], below["0.025"], below["80.0"], below["+Inf"]) == (1, 2, 2, 3)
