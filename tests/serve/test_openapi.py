"""/openapi.json describes every endpoint as it is."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, create_model

from glm_portable.serve.openapi import DocumentedApi
from tests.serve.fake_engine import Running

BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/messages": {"max_tokens": 5, "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/messages/count_tokens": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"input": "Hi"},
    "/tokenize": {"prompt": "Hi"},
    "/v1/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [5]},
    "/v1/detokenize": {"tokens": [5]},
}
STREAMING = {"/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"}


@pytest.fixture(scope="module")
def document(shared_http: httpx.Client) -> Any:
    return shared_http.get("/openapi.json").json()


def schema_of(document: Any, reference: str) -> Any:
    return document["components"]["schemas"][reference.rsplit("/", 1)[1]]


def test_every_reference_leads_somewhere(document: Any) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            here = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return here + [r for item in value.values() for r in references(item)]
        return [r for item in value for r in references(item)] if isinstance(value, list) else []

    assert all(schema_of(document, reference) for reference in references(document))


def test_two_schemas_of_one_name_are_told_apart() -> None:
    """Else one of them would describe the fields of both."""

    def body(name: str, kind: type) -> type[BaseModel]:
        inner = create_model("Inner", value=(kind, ...))
        return create_model(name, inner=(inner, ...))

    bodies = [body("A", int), body("B", str)]
    with pytest.raises(ValueError, match="two schemas .* are called Inner"):
        DocumentedApi(bodies, {}).openapi()
    assert "Inner" in str(DocumentedApi([bodies[0], body("B", int)], {}).openapi())


@pytest.mark.parametrize("path", sorted(BODIES))
def test_an_endpoint_with_a_body(
    server: Running, http: httpx.Client, document: Any, path: str
) -> None:
    described = document["paths"][path]["post"]
    body = described["requestBody"]["content"]["application/json"]["schema"]
    assert schema_of(document, body["$ref"])["type"] == "object"
    assert {"400", "401", "404", "408", "413", "415", "500", "503"} <= set(described["responses"])
    streams = "text/event-stream" in described["responses"]["200"]["content"]
    assert streams == (path in STREAMING)
    answer = http.post(path, json=BODIES[path] | {"stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream") == streams


@pytest.mark.parametrize("path", sorted(BODIES))
def test_errors_are_as_described(http: httpx.Client, document: Any, path: str) -> None:
    response = http.post(path, json=[])
    described = document["paths"][path]["post"]["responses"][str(response.status_code)]
    schema = schema_of(document, described["content"]["application/json"]["schema"]["$ref"])
    assert set(schema["required"]) <= set(response.json())
    assert set(schema["properties"]["error"]["required"]) <= set(response.json()["error"])


@pytest.mark.parametrize(
    "path",
    [
        *("embeddings", "moderations", "files", "batches", "rerank", "score", "audio/speech"),
        *("images/generations", "responses/resp_1/cancel", "messages/batches"),
    ],
)
def test_what_is_not_there_is_a_clean_404(http: httpx.Client, path: str) -> None:
    response = http.post(f"/v1/{path}", json={"model": "pocket", "input": "Hi"})
    assert response.status_code == 404
    assert f"There is nothing at /v1/{path}" in response.json()["error"]["message"]


IGNORED: dict[str, Any] = {
    "no_stop_trim": True, "continue_final_message": False, "skip_special_tokens": False,
    "separate_reasoning": True, "stream_reasoning": True, "return_hidden_states": False,
    "include_reasoning": True, "user": "me", "metadata": {"a": "b"}, "store": True,
    "service_tier": "auto", "safety_identifier": "x", "prompt_cache_key": "k", "verbosity": "low",
    "best_of": 1, "spaces_between_special_tokens": True, "cache_salt": "s", "priority": 0,
    "logit_bias": None, "seed": None, "logprobs": None, "unknown": [{"a": {}}], "": 1,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted(BODIES))
def test_fields_that_change_nothing_are_accepted(http: httpx.Client, path: str) -> None:
    response = http.post(path, json=IGNORED | BODIES[path])
    assert response.status_code == 200, response.text


def test_every_endpoint_is_in_the_documentation(document: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "serving-api.md").read_text(encoding="utf-8")
    rooted = {path.removeprefix("/v1") for path in document["paths"] if "token" in path}
    for path in {path for path in document["paths"] if path.startswith("/v1")} | rooted:
        if path not in {f"/v1{other}" for other in rooted}:
            assert re.sub(r"\{.*\}", "{id}", path) in text, path
