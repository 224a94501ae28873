"""The page at / over plain HTTP: its files, their headers, and that they need no key."""

import re
from collections.abc import Iterator

import httpx
import pytest

from glm_portable.serve.page import FILES, PATHS
from tests.serve.fake_engine import WAIT_S, Running, fake_server


@pytest.fixture(scope="module")
def guarded() -> Iterator[httpx.Client]:
    """A server that asks for a key, and a client that has none."""
    with (
        fake_server(api_keys=("first-key",)) as running,
        httpx.Client(base_url=running.url, timeout=WAIT_S) as client,
    ):
        yield client


def test_every_file_is_found_without_a_key(guarded: httpx.Client) -> None:
    types = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
    found = {path: guarded.get(path) for path in PATHS}
    assert {"/", "/web/app.js", "/web/style.css"} <= set(found)
    assert len(found) == len(list(FILES.iterdir()))
    for path, response in found.items():
        assert response.status_code == 200
        kind = types.get(f".{path.rpartition('.')[2]}" if path != "/" else ".html", "image/svg+xml")
        assert response.headers["content-type"].partition(";")[0] == kind
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == "no-referrer"


def test_the_api_behind_it_needs_the_key(guarded: httpx.Client) -> None:
    assert guarded.get("/v1/models").status_code == 401
    assert guarded.get("/web/other.js").status_code == 401
    assert guarded.get("/web/").status_code == 401


def test_the_policy_allows_no_script_but_its_own_and_no_other_host(http: httpx.Client) -> None:
    policy = http.get("/").headers["content-security-policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["script-src"] == directives["connect-src"] == "'self'"
    assert directives["frame-ancestors"] == directives["base-uri"] == "'none'"
    assert directives["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy and "http" not in policy and "*" not in policy


def test_the_page_holds_no_script_or_style_of_its_own(http: httpx.Client) -> None:
    """The policy would keep them from working."""
    page = http.get("/").text
    assert re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL) == [""]
    assert "<style" not in page and not re.search(r"\s(style|on\w+)=", page)


def test_nothing_is_loaded_from_elsewhere() -> None:
    for file in FILES.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "//" not in re.sub(r"^\s*//.*|\s// .*", "", text, flags=re.MULTILINE), file


def test_unknown_files_and_methods(server: Running, http: httpx.Client) -> None:
    assert http.get("/web/other.js").json()["error"]["code"] == "not_found"
    assert http.get("/web/..%2fpage.py").status_code == 404
    assert http.post("/").status_code == 405
    head = http.head("/")
    assert head.status_code == 200 and head.content == b""
    assert "/" not in http.get("/openapi.json").json()["paths"]
