"""The page at / in headless Chromium, where it is installed: a person's way through it."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.sync.client import ClientConnection

from glm_portable.engine.types import Delta
from tests.browser import Page, chromium, needs_browser, new_page
from tests.serve.conversation import CALL, WEATHER
from tests.serve.fake_engine import Running, eventually, fake_server, says

pytestmark = needs_browser

THOUGHT = "\n<think>A greeting: I greet back.</think>\n"
FAILURE = Delta(finish_reason="error", error="The model produced NaN.")
IDLE = "!document.getElementById('send').hidden && document.querySelector('.answer .figures')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientConnection]:
    with chromium(tmp_path_factory.mktemp("profile")) as connection:
        yield connection


@pytest.fixture(scope="module")
def modules(browser: ClientConnection, shared_server: Running) -> Iterator[Page]:
    """A tab to try the page's modules in, one by one."""
    with new_page(browser) as page:
        page.open(shared_server.url)
        yield page


@pytest.fixture
def page(browser: ClientConnection, server: Running) -> Iterator[Page]:
    with new_page(browser) as page:
        page.look()
        page.open(server.url)
        page.until("document.getElementById('model').options.length")
        yield page
    assert not page.complaints
    assert all(url.startswith(server.url) for url in page.asked)


def ask(page: Page, text: str) -> None:
    page.js("document.getElementById('text').focus()")
    page.type(text)
    page.press("Enter")


def wait(page: Page) -> None:
    """Until the answer is over, or was never one."""
    page.until("!document.getElementById('send').hidden")


def sent(server: Running, number: int = -1) -> str:
    return server.engine.requests[number].prompt


def test_thinking_is_apart_and_live(server: Running, page: Page) -> None:
    deltas = says(THOUGHT + "Hello **there**, `you`!")
    server.engine.script = lambda request: deltas[:12]
    ask(page, "Hi.")
    page.until("document.querySelector('.thought')?.textContent.includes('A gre')")
    assert page.js("document.querySelector('.answer details').open")
    assert page.text(".answer summary") == "Thinking…"
    assert page.text("#status") == "Thinking"
    (request,) = server.engine.requests
    for delta in deltas[12:]:
        request.send(delta)
    wait(page)
    assert not page.js("document.querySelector('.answer details').open")
    assert page.text(".answer summary").startswith("Thought for ")
    assert page.text(".answer .said") == "Hello there, you!"
    assert page.text(".said strong, .said code") == "there"
    page.click(".answer summary")
    assert page.text(".thought") == "A greeting: I greet back."
    assert page.text(".answer h2") == "pocket" and page.text(".user .said") == "Hi."
    assert page.text("#status") == "The answer is complete"


def test_speed_and_tokens(server: Running, page: Page) -> None:
    deltas = says("One two three four five six.", size=3)
    server.engine.script = lambda request: deltas[:1]
    ask(page, "Hi.")
    page.until("document.querySelector('.figures')?.textContent.includes('3 out')")
    (request,) = server.engine.requests
    for delta in deltas[1:]:
        request.send(delta)
    wait(page)
    tokens = sum(len(delta.token_ids) for delta in deltas)
    shown = page.text(".figures").split(" · ")
    assert [part.split()[-1] for part in shown] == ["s", "tokens/s", "in", "out"]
    assert shown[2:] == [f"{len(request.prompt_ids)} tokens in", f"{tokens} out"]
    assert shown[0].startswith("first token after ")


def test_the_rate_leaves_the_first_tokens_out(modules: Page) -> None:
    """4 tokens after 0.5 s, then 10 more within 2 s: 5 tokens/s."""
    shown = modules.js(
        """import('/web/answer.js').then(({begin, take, figures}) => {
          const answer = begin(1000);
          const chunk = (count, content) => ({choices: [{delta: {content}}],
            usage: {prompt_tokens: 7, completion_tokens: count,
                    prompt_tokens_details: {cached_tokens: 5}}});
          take(answer, chunk(4, "a"), 1500);
          take(answer, chunk(14, "b"), 3500);
          take(answer, {choices: [], usage: chunk(14).usage}, 9000);
          return figures(answer);
        })"""
    )
    assert shown == "first token after 0.50 s · 5.0 tokens/s · 7 tokens in (5 cached) · 14 out"


def test_the_conversation_goes_on(server: Running, page: Page) -> None:
    server.engine.script = lambda request: says(THOUGHT + "Hello.")
    ask(page, "Hi.")
    wait(page)
    ask(page, "And again?")
    page.until("document.querySelectorAll('.answer').length === 2")
    wait(page)
    assert sent(server).index("Hi.") < sent(server).index("Hello.") < sent(server).index("again?")


def test_shift_enter_breaks_the_line_and_nothing_is_sent_without_text(
    server: Running, page: Page
) -> None:
    page.press("Enter")
    page.type("one")
    page.press("Enter", shift=True)
    page.type("two")
    assert page.js("document.getElementById('text').value") == "one\ntwo"
    assert not server.engine.requests
    page.press("Enter")
    wait(page)
    assert "one\ntwo" in sent(server) and page.text(".user .said") == "one\ntwo"


def test_settings_are_sent(server: Running, page: Page) -> None:
    page.click("#settings summary")
    for name, text in (("system", "Be brief."), ("temperature", "0.25"), ("max-tokens", "33")):
        page.click(f"#{name}")
        page.type(text)
    page.click("#thinking")
    page.js("document.getElementById('model').value = 'zai/pocket'")
    ask(page, "Hi.")
    wait(page)
    (request,) = server.engine.requests
    assert request.params.temperature == 0.25 and request.params.max_tokens == 33
    assert "Be brief." in request.prompt and request.prompt.endswith("<think></think>")
    assert page.text(".answer h2") == "zai/pocket"


def test_left_alone_the_settings_are_the_servers(server: Running, page: Page) -> None:
    bodies = "window.bodies = []; const send = fetch; window.fetch = (path, options) => {"
    page.js(f"{bodies} bodies.push(options.body); return send(path, options); }}; undefined")
    ask(page, "Hi.")
    wait(page)
    (body,) = page.js("window.bodies")
    assert set(json.loads(body)) == {"messages", "model", "stream", "stream_options"}


def use_tools(page: Page, tools: Any) -> None:
    page.js("document.getElementById('settings').open = true")
    page.click("#tools")
    page.js("document.getElementById('tools').select()")
    page.type(tools if isinstance(tools, str) else json.dumps(tools))


def test_a_tool_call_and_its_continuation(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    answers = [says(f"I look.\n{CALL}"), says("It rains in Bonn.")]
    server.engine.script = lambda request: answers[len(server.engine.requests) - 1]
    ask(page, "Weather in Bonn?")
    wait(page)
    assert "get_weather" in sent(server)
    assert page.text(".call h3") == "Calls get_weather"
    assert json.loads(page.text(".call pre")) == {"city": "Bonn", "days": 3}
    assert page.text("#status") == "The model calls get_weather: type the result"
    page.press("Enter")  # an empty result is not sent
    page.type('{"sky": "rain"}')  # into the result's field, which got the focus
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2")
    wait(page)
    assert len(server.engine.requests) == 2
    assert '{"sky": "rain"}' in sent(server) and "<arg_key>city</arg_key>" in sent(server)
    assert "I look." in sent(server)
    assert page.text(".call .result pre") == '{"sky": "rain"}'
    assert page.text(".answer:last-child .said") == "It rains in Bonn."
    assert page.js("document.querySelector('.call form').hidden")


def test_two_calls_need_two_results(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    other = CALL.replace("Bonn", "Rome")
    answers = [says(f"{CALL}\n{other}"), says("Done.")]
    server.engine.script = lambda request: answers[len(server.engine.requests) - 1]
    ask(page, "Weather?")
    wait(page)
    page.type("rain in Bonn")
    page.press("Enter")  # goes to the other field
    page.type("sun in Rome")
    page.press("Enter")
    page.until("document.querySelectorAll('.answer').length === 2")
    wait(page)
    assert sent(server).index("rain in Bonn") < sent(server).index("sun in Rome")


def test_a_call_that_the_limit_cut_off_is_not_answered(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    server.engine.script = lambda request: says(CALL[:60], reason="length")
    ask(page, "Weather?")
    wait(page)
    assert "not whole" in page.text(".call")
    assert page.js("document.querySelector('.call form').hidden")
    assert "cut off by the token limit" in page.text(".figures")
    server.engine.script = lambda request: says("Hello.")
    ask(page, "Then hello.")
    page.until("document.querySelectorAll('.answer').length === 2")
    wait(page)
    assert page.text(".answer:last-child .said") == "Hello."


def test_tools_that_are_no_json_are_named_and_nothing_is_lost(server: Running, page: Page) -> None:
    use_tools(page, "[{]")
    ask(page, "Hi.")
    page.until("!document.getElementById('tools-problem').hidden")
    assert page.text("#tools-problem").startswith("The tools are not valid JSON: ")
    assert page.js("document.getElementById('text').value") == "Hi."
    assert not server.engine.requests
    use_tools(page, "")
    page.click("#example")
    ask(page, "")
    wait(page)
    assert "get_weather" in sent(server)


def test_stop(server: Running, page: Page) -> None:
    server.engine.script = lambda request: says("One two three four.")[:4]
    ask(page, "Count.")
    page.until("document.querySelector('.answer .said')?.textContent.includes('One')")
    page.type("a draft")
    page.press("Enter")  # not while an answer comes
    page.click("#stop")
    wait(page)
    eventually(server.engine.requests[0].cancelled.is_set)
    assert "stopped by you" in page.text(".figures")
    assert page.js("document.getElementById('text').value") == "a draft"
    assert len(server.engine.requests) == 1
    server.engine.script = lambda request: says("Another.")
    page.click(".again")
    wait(page)
    assert page.text(".answer .said") == "Another."
    assert page.js("document.querySelectorAll('article').length") == 2


def test_escape_before_the_first_token_gives_the_text_back(server: Running, page: Page) -> None:
    server.engine.script = lambda request: []
    ask(page, "Hi.")
    server.engine.wait_for(1)
    page.press("Escape")
    wait(page)
    assert page.js("document.getElementById('text').value") == "Hi."
    assert page.js("document.querySelectorAll('article').length") == 0
    assert page.js("document.getElementById('problem').hidden")


def test_an_error_is_shown_in_the_servers_words_and_the_text_is_kept(
    server: Running, page: Page
) -> None:
    long = "word " * 600
    ask(page, long)
    page.until("!document.getElementById('problem').hidden")
    assert "maximum context length is 512 tokens" in page.text("#problem")
    assert "status 400, request " in page.text("#problem")
    assert page.js("document.getElementById('text').value") == long
    page.js("document.getElementById('text').value = ''")
    ask(page, "Shorter.")
    wait(page)
    assert page.js("document.getElementById('problem').hidden")
    assert page.text(".answer .said") == "Hello there."


def test_an_error_in_a_stream_keeps_what_came(server: Running, page: Page) -> None:
    server.engine.script = lambda request: [*says("Half an answer")[:-1], FAILURE]
    ask(page, "Hi.")
    wait(page)
    assert page.text(".answer .said") == "Half an answer"
    assert "The model produced NaN." in page.text(".answer .problem")
    server.engine.script = lambda request: [FAILURE]
    page.click(".again")
    wait(page)
    page.until("!document.getElementById('problem').hidden")
    assert page.text(".answer .said") == "Half an answer"  # no better one came
    server.engine.script = lambda request: says("A whole answer.")
    page.click(".again")
    wait(page)
    assert page.text(".answer .said") == "A whole answer."


def test_an_error_after_a_result_keeps_the_result(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    answers = [says(CALL), [FAILURE], says("It rains.")]
    server.engine.script = lambda request: answers[len(server.engine.requests) - 1]
    ask(page, "Weather?")
    wait(page)
    page.type("rain")
    page.press("Enter")
    page.until("!document.getElementById('problem').hidden")
    assert page.js("document.querySelector('.call textarea').value") == "rain"
    page.click(".call button")
    page.until("document.querySelectorAll('.answer').length === 2")
    wait(page)
    assert page.text(".answer:last-child .said") == "It rains."


def test_a_server_that_is_gone_is_named(browser: ClientConnection) -> None:
    with new_page(browser) as page:
        with fake_server() as running:
            page.open(running.url)
            page.until("document.getElementById('model').options.length")
        ask(page, "Hi.")
        page.until("!document.getElementById('problem').hidden")
        assert "The server cannot be reached" in page.text("#problem")
        assert page.js("document.getElementById('text').value") == "Hi."


def test_the_key_is_asked_for_and_kept_by_the_tab(browser: ClientConnection) -> None:
    with fake_server(api_keys=("first-key",)) as running, new_page(browser) as page:
        page.open(running.url)
        page.until("!document.getElementById('key-form').hidden")
        assert "The API key is missing or wrong" in page.text("#problem")
        for key in ("wrong", "first-key"):  # the field has the focus
            page.until("document.activeElement.id === 'key'")
            page.type(key)
            page.press("Enter")
            page.until(f"sessionStorage.getItem('api-key') === '{key}'")
        page.until("document.getElementById('model').options.length")
        ask(page, "Hi.")
        page.until(IDLE)
        assert page.text(".answer .said") == "Hello there."
        assert page.js("document.getElementById('key-form').hidden")
        kept = page.js("[sessionStorage.getItem('api-key'), localStorage.length, document.cookie]")
        assert kept == ["first-key", 0, ""]
        assert not page.complaints


HOSTILE = (
    "<img src=x onerror=\"document.title='attacked'\"> </script><script>document.title='attacked'"
    "</script> [link](javascript:alert(1)) <b>bold</b>"
)


def test_hostile_text_is_shown_as_text(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    call = CALL.replace("Bonn", HOSTILE)
    said = f"\n<think>{HOSTILE}</think>\n{HOSTILE}\n# {HOSTILE}\n- {HOSTILE}\n"
    said += f"```x\n{HOSTILE}\n```\n{call}"
    server.engine.script = lambda request: says(said)
    ask(page, HOSTILE)
    wait(page)
    assert page.js("document.querySelectorAll('#log :is(img, script, a, b, iframe)').length") == 0
    assert page.js("document.title") == "glm-portable"
    assert page.text(".user .said") == HOSTILE
    shown = page.js("document.querySelector('.answer').textContent")
    assert shown.count(HOSTILE) == 5
    assert json.dumps(HOSTILE) in shown  # the argument
    assert len({url for url in page.asked if "/web/" not in url and "/v1/" not in url}) == 1


def test_an_injected_script_does_not_run(server: Running, browser: ClientConnection) -> None:
    """Even had the page let text become markup."""
    attempts = (
        "document.body.innerHTML += '<img src=x onerror=\"window.hit = 1\">'",
        "document.body.setAttribute('onclick', 'window.hit = 1')",
        "fetch('http://127.0.0.1:9/')",
    )
    with new_page(browser) as page:
        page.open(server.url)
        for attempt in attempts:
            tried = (
                f"(async () => {{ try {{ await ({attempt}); }} catch (e) {{ return e.name; }} }})()"
            )
            assert page.js(tried) == "TypeError"
        page.click("body")
        assert page.js("window.hit") is None
        assert len(page.complaints) >= len(attempts)


def test_a_reload_keeps_the_conversation_and_a_new_chat_asks_first(
    server: Running, page: Page
) -> None:
    server.engine.script = lambda request: says(THOUGHT + "Hello.")
    ask(page, "Hi.")
    wait(page)
    page.type("a draft")
    page.call("Page.reload")
    page.until("document.querySelectorAll('article').length === 2")
    assert page.text(".answer .said") == "Hello."
    assert page.js("document.getElementById('text').value") == "a draft"
    page.accepts_dialogs = False
    page.click("#new")
    assert page.js("document.querySelectorAll('article').length") == 2
    page.accepts_dialogs = True
    page.click("#new")
    page.until("document.querySelectorAll('article').length === 0")


def test_a_new_chat_ends_the_running_answer(server: Running, page: Page) -> None:
    server.engine.script = lambda request: says("One two three.")[:-1]
    ask(page, "Hi.")
    page.until("document.querySelector('.answer .said')?.textContent.includes('One')")
    page.click("#new")
    wait(page)
    eventually(server.engine.requests[0].cancelled.is_set)
    assert page.js("document.querySelectorAll('article').length") == 0


EVENTS = """import('/web/stream.js').then(async ({events}) => {
  const bytes = new TextEncoder().encode(TEXT);
  const read = async (cuts) => {
    const found = [];
    const stream = new ReadableStream({start(feed) {
      [0, ...cuts].forEach((at, i) => feed.enqueue(bytes.slice(at, cuts[i] ?? bytes.length)));
      feed.close();
    }});
    for await (const data of events(stream)) found.push(data);
    return JSON.stringify(found);
  };
  const seen = new Set();
  for (let i = 1; i < bytes.length; i++) seen.add(await read([i]));
  seen.add(await read([...bytes.keys()].slice(1)));
  return [...seen];
})"""


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_events_are_the_same_however_the_bytes_are_cut(modules: Page, newline: str) -> None:
    """Also between the bytes of a character and between the two of a line break."""
    lines = ["data: grüße 🙂", "", ": a comment", "event: x", "data:two", "data:  lines", "", ""]
    lines += ["data: [DONE]", "", "data: an end without a blank line"]
    (seen,) = modules.js(EVENTS.replace("TEXT", json.dumps(newline.join(lines) + newline)))
    assert json.loads(seen) == ["grüße 🙂", "two\n lines", "[DONE]"]


def test_a_stream_that_merely_stops_is_no_answer(modules: Page) -> None:
    said = modules.js(
        """import('/web/stream.js').then(async ({chunks}) => {
          const said = [];
          for (const text of ['data: {"choices": []}\\n\\n', 'data: {"choi\\n\\n']) {
            try { for await (const chunk of chunks(new Response(text))); said.push("ended"); }
            catch (error) { said.push(error.name, error.message.slice(0, 22)); }
          }
          return said;
        })"""
    )
    assert said == ["Error", "The answer broke off: "] * 2


MARKDOWN = """## Steps
1. First *one*
2. Second `2 * 3 * 4`
   - inner
   more

Text with 2*3*4 and **bold**
in two lines

~~~python
def f():
    return "```"
~~~
| a | b |
|---|---|
---
* loose"""


def test_markdown_grows_into_the_same_page(modules: Page) -> None:
    """Shown piece by piece it ends as it does at once."""
    same, html = modules.js(
        """import('/web/markdown.js').then(({show}) => {
          const text = TEXT;
          const [grown, whole] = [document.createElement("div"), document.createElement("div")];
          for (let i = 1; i <= text.length; i++) show(grown, text.slice(0, i));
          show(whole, text);
          return [grown.innerHTML === whole.innerHTML, whole.innerHTML];
        })""".replace("TEXT", json.dumps(MARKDOWN))
    )
    assert same
    assert html == (
        '<h4>Steps</h4><div><ol start="1"><li>First <em>one</em></li><li>Second '
        "<code>2 * 3 * 4</code><ul><li>inner\nmore</li></ul></li></ol></div>"
        "<p>Text with 2*3*4 and <strong>bold</strong>\nin two lines</p>"
        '<pre tabindex="0" data-language="python"><code>def f():\n    return "```"</code></pre>'
        '<pre tabindex="0"><code>| a | b |\n|---|---|</code></pre><hr>'
        "<div><ul><li>loose</li></ul></div>"
    )


MARKS = ["`", "``` ", "* ", "*a ", "**a", "**", "- ", "# ", "_ _ ", " ", "1. ", "| "]


def test_repeated_marks_are_read_in_no_time(modules: Page) -> None:
    """A pattern that took quadratic time would hold the page, and this test, for minutes."""
    modules.js(
        """import('/web/markdown.js').then(({show}) => {
          for (const mark of MARKS) {
            const text = mark.repeat(200000 / mark.length);
            for (const end of ["", "x"]) show(document.createElement("div"), text + end);
          }
        })""".replace("MARKS", json.dumps(MARKS))
    )


def test_narrow_windows_do_not_scroll_sideways(server: Running, page: Page) -> None:
    wide = f"```\n{'wide ' * 80}\n```\n{'unbroken' * 40}"
    server.engine.script = lambda request: says(wide)
    page.look(width=340, height=700)
    use_tools(page, [WEATHER])
    ask(page, "Hi.")
    wait(page)
    widths = "[document.documentElement, document.getElementById('log')]"
    assert page.js(f"{widths}.every((place) => place.scrollWidth <= place.clientWidth)")


def test_every_field_has_a_name_for_screen_readers(server: Running, page: Page) -> None:
    use_tools(page, [WEATHER])
    server.engine.script = lambda request: says(CALL)
    ask(page, "Weather?")
    wait(page)
    nameless = page.js(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".filter((field) => !field.labels.length).map((field) => field.id)"
    )
    assert nameless == []
    assert page.js("document.getElementById('status').getAttribute('role')") == "status"
    assert page.js("document.querySelector('.answer').getAttribute('aria-busy')") == "false"
