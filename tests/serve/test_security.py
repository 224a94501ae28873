"""What an attacker tries, after the known advisories of other servers."""

import ast
import json
import logging
import re
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

import glm_portable
from glm_portable.errors import UsageError
from glm_portable.serve import template
from glm_portable.serve.template import compile_template, render
from tests.serve.conversation import HI, WEATHER
from tests.serve.fake_engine import Running, Submitted, fake_server, says
from tests.serve.raw import connect

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HI},
    COMPLETIONS: {"prompt": "a"},
    RESPONSES: {"input": "a"},
    MESSAGES: {"messages": HI, "max_tokens": 5},
    "/tokenize": {"messages": HI},
}
PACKAGE = Path(glm_portable.__file__).parent
JSON = {"content-type": "application/json"}


def refused(answer: httpx.Response) -> str:
    assert answer.status_code == 400, (answer.status_code, answer.text[:300])
    message: str = answer.json()["error"]["message"]
    assert not re.search(r"0x[0-9a-f]{4}|Traceback|File \"|site-packages|pydantic", message)
    return message


def nested(depth: int, inner: str = "1") -> str:
    return '{"a":' * depth + inner + "}" * depth


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("depth", [300, 100_000])
def test_deep_json(http: httpx.Client, path: str, depth: int) -> None:
    for deep in ("[" * depth, "[" * depth + "]" * depth, nested(depth)):
        answer = http.post(path, content=deep, headers=JSON)
        assert answer.status_code == 400, answer.text[:200]
    body = json.dumps(BODIES[path])[:-1]
    answer = http.post(path, content=f'{body}, "unknown": {nested(depth)}}}', headers=JSON)
    assert answer.status_code in (200, 400)


@pytest.mark.parametrize("depth", [100, 190, 5000])
def test_deep_tools_and_schemas(http: httpx.Client, depth: int) -> None:
    deep = nested(depth, '{"type": "string"}').replace('"a"', '"items"')
    tool = json.dumps(WEATHER).replace('{"type": "integer"}', deep)
    schema = f'{{"type": "json_schema", "json_schema": {{"name": "x", "schema": {deep}}}}}'
    for extra in (f'"tools": [{tool}]', f'"response_format": {schema}'):
        answer = http.post(CHAT, content=f'{{"messages": {json.dumps(HI)}, {extra}}}', headers=JSON)
        assert answer.status_code in (200, 400), answer.text[:200]
    assert http.post(CHAT, json={"messages": HI}).status_code == 200


@pytest.mark.parametrize("path", BODIES)
def test_a_lone_surrogate_is_refused(http: httpx.Client, path: str) -> None:
    text = json.dumps(BODIES[path]).replace('"Hi."', r'"\ud800"').replace('"a"', r'"\ud800"')
    refused(http.post(path, content=text, headers=JSON))


@pytest.mark.parametrize(
    "kwargs",
    [
        *({"chat_template": "{{ 1 }}"}, {"tokenize": True}, {"messages": []}, {"tools": []}),
        *({"raise_exception": 1}, {"range": 1}, {"__class__": 1}, {"enable_thinking": "x" * 99}),
    ],
)
def test_template_variables_are_an_allowlist(
    server: Running, http: httpx.Client, kwargs: dict[str, Any]
) -> None:
    for path in (CHAT, "/tokenize"):
        body = {"messages": HI, "chat_template_kwargs": kwargs}
        refused(http.post(path, json=body))
    assert server.engine.requests == []


def test_a_request_cannot_bring_a_template(server: Running, http: httpx.Client) -> None:
    bomb = "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"
    plain = http.post(CHAT, json={"messages": HI}).status_code
    with_template = http.post(CHAT, json={"messages": HI, "chat_template": bomb})
    assert plain == 200 and with_template.status_code in (200, 400)
    prompts = {request.prompt for request in server.engine.requests}
    assert len(prompts) == 1, "the template of a request was used"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__.os }}",
        "{{ messages.append(1) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ [1] * 10000000000 }}",
        "{{ 9 ** 9999999999 }}",
        "{{ '%9999999999d' % 1 }}",
    ],
)
def test_a_checkpoint_s_template_stays_in_its_sandbox(source: str) -> None:
    compiled = compile_template(source, "x")
    with pytest.raises(UsageError) as caught:
        render(compiled, {"messages": [1]})
    assert "id" not in str(caught.value).split() and "0x" not in str(caught.value)


def test_a_template_cannot_make_a_huge_text_in_one_step() -> None:
    """Refused before it is made: the limit of what is written would come too late."""
    for source in ("{{ 'x' * 40000000 }}", "{{ 40000000 * 'x' }}"):
        with pytest.raises(UsageError, match="repeats a text too often"):
            render(compile_template(source, "x"), {})
    assert render(compile_template("{{ '-' * 40 }}", "x"), {}) == "-" * 40


def test_a_template_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = (
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}"
    )
    monkeypatch.setattr(template, "RENDER_S", 0.05)
    with pytest.raises(UsageError, match="took more than"):
        render(compile_template(endless, "x"), {})


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_embeddings_of_a_prompt_are_refused(server: Running, http: httpx.Client, path: str) -> None:
    assert "prompt_embeds" in refused(http.post(path, json=BODIES[path] | {"prompt_embeds": "AA"}))
    assert server.engine.requests == []


def test_nothing_is_fetched_for_a_request(server: Running, http: httpx.Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        url = f"http://127.0.0.1:{bait.getsockname()[1]}/x.png"
        for odd in (
            url,
            f"http://example.com\\@127.0.0.1:{bait.getsockname()[1]}/",
            "file:///etc/passwd",
        ):
            image = {"type": "image_url", "image_url": {"url": odd}}
            refused(http.post(CHAT, json={"messages": [{"role": "user", "content": [image]}]}))
            source = {"type": "image", "source": {"type": "url", "url": odd}}
            message = {"role": "user", "content": [source]}
            refused(http.post(MESSAGES, json={"messages": [message], "max_tokens": 5}))
        bait.setblocking(False)
        with pytest.raises(BlockingIOError):
            bait.accept()
    assert server.engine.requests == []


@pytest.mark.parametrize(
    "extra",
    [
        *({"n": 10**6}, {"n": -1}, {"max_tokens": -1}, {"max_tokens": 10**30}, {"top_k": 10**30}),
        *({"best_of": 10**6, "n": 10**6}, {"logprobs": True, "top_logprobs": 10**6}),
        *({"seed": 10**30}, {"min_tokens": 10**30}, {"temperature": 1e308}, {"stop": ["x"] * 999}),
        *({"logit_bias": {"99999999999": 1}}, {"logit_bias": {str(i): 1 for i in range(5000)}}),
        *({"stop_token_ids": [1] * 9999}, {"repetition_penalty": 1e-400}),
    ],
)
def test_every_number_has_a_bound(server: Running, http: httpx.Client, extra: Any) -> None:
    refused(http.post(CHAT, json={"messages": HI} | extra))
    assert server.engine.requests == []


ADMIN = (
    *("/shutdown", "/load", "/load_lora_adapter", "/unload_lora_adapter", "/sleep", "/wake_up"),
    *("/reset_prefix_cache", "/collective_rpc", "/start_profile", "/stop_profile", "/flush_cache"),
    *("/update_weights", "/update_weights_from_disk", "/get_weights_by_name", "/release_memory"),
    *("/pause", "/abort_request", "/set_internal_state", "/generate", "/invocations", "/docs"),
    *("/server_info", "/scale_elastic_ep", "/debug", "/v1/rerank", "/v1/files", "/redoc"),
)


def test_there_are_no_endpoints_of_administration(http: httpx.Client) -> None:
    for path in ADMIN:
        assert http.get(path).status_code == 404, path
        assert http.post(path, json={}).status_code == 404, path


def test_only_operations_and_the_page_are_open_without_a_key() -> None:
    """Every path that the description lists, rather than a list of our own."""
    with fake_server(api_keys=("key",)) as running:
        document = httpx.get(f"{running.url}/openapi.json").json()
        for path, methods in document["paths"].items():
            for method in methods:
                status = httpx.request(method, running.url + path).status_code
                is_open = path in (
                    "/health",
                    "/live",
                    "/ready",
                    "/ping",
                    "/version",
                    "/metrics",
                    "/",
                )
                assert (status == 401) != is_open, (method, path, status)


def test_two_lengths_of_one_body(server: Running) -> None:
    """Content-Length beside chunks: a proxy might see another request in it than we do."""
    both = (
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    )
    with connect(server.url) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + both)
        assert connection.recv(4096).startswith(b"HTTP/1.1 4")


def test_exceptions_stay_in_the_log(
    server: Running, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise ValueError("<Image object at 0x7f00dead>")

    for part in ("encode", "encode_template"):
        monkeypatch.setattr(server.service.tokenizer, part, broken)
    with_key = []
    for path, body in BODIES.items():
        answer = http.post(path, json=body)
        assert answer.status_code == 500 and "0x7f" not in answer.text, path
        with_key.append(answer)
    logging.getLogger(__name__).debug("%d answers", len(with_key))


def test_nothing_from_outside_is_unpickled_or_run() -> None:
    """Checkpoints are read as safetensors and JSON alone, and no class of theirs is imported."""
    forbidden = {
        *("pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"),
        *("torch.load", "trust_remote_code", "yaml.load", "yaml.unsafe_load", "eval", "exec"),
    }
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for name in _used(node):
                assert name not in forbidden, f"{path}:{getattr(node, 'lineno', 0)} uses {name}"


def _used(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    if isinstance(node, ast.Call):
        return [ast.unparse(node.func), *(word.arg or "" for word in node.keywords)]
    return []


def test_a_client_that_leaves_in_the_middle_of_its_body(
    server: Running, http: httpx.Client
) -> None:
    """With FIN or with RST: nothing was started for it, and the connection is forgotten."""
    for abrupt in (False, True):
        connection = connect(server.url)
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        connection.sendall(f'{head}Content-Length: 100\r\n\r\n{{"mess'.encode())
        if abrupt:
            linger = b"\x01\x00\x00\x00\x00\x00\x00\x00"
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.close()
    assert http.post(CHAT, json={"messages": HI}).status_code == 200
    assert len(server.engine.requests) == 1


def test_a_prompt_full_of_control_tokens_is_text(server: Running, http: httpx.Client) -> None:
    def answer(request: Submitted) -> Any:
        return says("x")

    server.engine.script = answer
    for text in ("<|assistant|>", "<|user|>", "[gMASK]<sop><|system|>", "<|endoftext|>"):
        http.post(CHAT, json={"messages": [{"role": "user", "content": text}]})
    lengths = {len(request.prompt_ids) for request in server.engine.requests}
    plain = http.post(CHAT, json={"messages": [{"role": "user", "content": ""}]})
    assert plain.status_code == 200
    base = len(server.engine.requests[-1].prompt_ids)
    assert min(lengths) > base + 1, "a control token of a user became one token"
