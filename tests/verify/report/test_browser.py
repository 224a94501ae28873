"""The page in a real browser, where there is one: its script runs and filters, no other does."""

import functools
import html
import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from glm_portable.verify.report.page import render
from tests.browser import BROWSER, FLAGS, needs_browser
from tests.verify.report.samples import mixed

pytestmark = needs_browser

ASK = """<!doctype html><iframe id="page" src="/{page}" width="{width}" height="900"></iframe>
<script>
document.getElementById("page").onload = (event) => {{
  const page = event.target.contentDocument;
  const rows = [...page.querySelectorAll("#checks tbody tr")];
  const shown = () => rows.filter((row) => !row.hidden).length;
  const set = (id, value, kind) => {{
    const field = page.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event(kind, {{ bubbles: true }}));
    return [shown(), page.getElementById("found").textContent];
  }};
  const root = page.documentElement;
  const said = {{
    title: page.title, all: shown(), filter: !page.getElementById("filter").hidden,
    failing: set("result", "fail", "change"), both: set("find", "LINEAR outl", "input"),
    again: (set("result", "", "change"), set("find", "", "input")),
    wide: root.scrollWidth - root.clientWidth,
    ground: page.defaultView.getComputedStyle(page.body).backgroundColor,
  }};
  const answer = document.createElement("pre");
  answer.textContent = JSON.stringify(said);
  document.body.append(answer);
}};
</script>"""


@dataclass
class Site:
    """A folder that is served on this machine, and the paths that were asked for."""

    folder: Path
    port: int
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    found = Site(tmp_path, 0)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            found.asked.append(self.path)

    handler = functools.partial(Handler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        found.port = server.server_port
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield found
        server.shutdown()
        thread.join()


def seen(site: Site, page: str, *flags: str, width: int = 1000) -> dict[str, Any]:
    """What a browser makes of a page."""
    (site.folder / "page.html").write_text(page, encoding="utf-8")
    (site.folder / "ask.html").write_text(ASK.format(page="page.html", width=width))
    assert BROWSER is not None
    done = subprocess.run(
        [BROWSER, *FLAGS, *flags, f"--user-data-dir={site.folder}/profile",
         "--dump-dom", f"http://127.0.0.1:{site.port}/ask.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "<pre>{" in done.stdout, f"{done.stdout[:2000]} {done.stderr[-2000:]}"
    answer = done.stdout.split("<pre>")[1].split("</pre>")[0]
    said: dict[str, Any] = json.loads(html.unescape(answer))
    return said


def test_the_filter_works_and_nothing_is_fetched(site: Site) -> None:
    said = seen(site, render(mixed()))
    assert said["title"] == "FAIL: ops and model"
    assert said["filter"] and said["all"] == 22
    assert said["failing"] == [4, "4 of 22 checks"]
    assert said["both"] == [1, "1 of 22 checks"]
    assert said["again"] == [22, "22 of 22 checks"]
    assert {path for path in site.asked if "favicon" not in path} == {"/ask.html", "/page.html"}


def test_a_phone_need_not_scroll_sideways_and_dark_is_dark(site: Site) -> None:
    said = seen(site, render(mixed()), "--blink-settings=preferredColorScheme=0", width=360)
    assert said["wide"] <= 0
    assert said["ground"] == "rgb(15, 20, 25)"


def test_an_injected_script_does_not_run(site: Site) -> None:
    """Even had the template let one through."""
    attack = "<script>document.title = 'attacked'</script><img src=/leak onerror=\"alert(1)\">"
    page = render(mixed()).replace("</main>", f"{attack}</main>")
    assert attack in page
    said = seen(site, page)
    assert said["title"] == "FAIL: ops and model" and said["all"] == 22
    assert "/leak" not in site.asked
