"""The page says what the report says, in text too, and lets nobody else's script in."""

import base64
import hashlib
import math
import re
from dataclasses import replace

import pytest

from glm_portable.verify.report.page import ASSETS, render
from glm_portable.verify.report.plots import curves, errors
from glm_portable.verify.report.scale import Linear, Log
from glm_portable.verify.results import Check, Report, Status
from tests.verify.report.parsed import Element, parse
from tests.verify.report.samples import ABOUT, HOSTILE, SKIPPED, clean, head, layer, mixed, op


def page(report: Report) -> Element:
    return parse(render(report))


@pytest.fixture(scope="module")
def root() -> Element:
    return page(mixed())


def test_verdict_totals_and_surroundings(root: Element) -> None:
    header = root.one("header")
    assert header.attributes["class"] == "fail"
    assert header.text.startswith("ops and model FAIL 22 checks: 4 failed, 1 unsupported")
    about = {e.one("dt").text: e.one("dd").text for e in root.one("dl").all("div")}
    assert about.items() >= ABOUT.items() and "checks (hash)" in about
    assert page(clean()).one("header").attributes["class"] == "pass"
    nothing = page(Report("x", {}, [SKIPPED])).one("header")
    assert nothing.attributes["class"] == "nothing-checked"


def test_failures_are_told_with_why_they_matter(root: Element) -> None:
    told = root.all("article")
    assert len(told) == 4
    assert "outliers error nan exceeds 0.01" in told[0].text
    assert "Why it matters: Attention projections" in told[0].text
    assert not page(clean()).all("article")


def test_many_failures_are_folded() -> None:
    root = page(Report("x", {}, [op(f"{i}", 1.0) for i in range(30)]))
    assert len(root.all("article")) == 30
    assert len(root.one("details").all("article")) == 20


def test_every_check_is_a_row_with_a_word_for_its_result(root: Element) -> None:
    rows = root.one("table", id="checks").one("tbody").all("tr")
    assert len(rows) == len(mixed().checks)
    for row, check in zip(rows, mixed().checks, strict=True):
        assert check.status.value in row.text and f"{check.level} {check.subject}" in row.text
        assert row.attributes["data-result"] == check.status.value
    assert "0.004 of 0.01 allowed (0.4) slope 1 grouped_gemm x 2 0.25" in rows[0].text


def test_links_lead_somewhere(root: Element) -> None:
    targets = {e.attributes["id"] for e in root.walk() if "id" in e.attributes}
    links = [e.attributes["href"] for e in root.all("a")]
    assert links and all(link.removeprefix("#") in targets for link in links)
    named = [
        e.attributes["aria-labelledby"] for e in root.walk() if "aria-labelledby" in e.attributes
    ]
    assert set(named) <= targets


def test_marks_stand_where_their_ratios_are(root: Element) -> None:
    strips = {s.one("div", class_="label").text: s for s in root.all("div", class_="strip")}
    linear = strips["linear ops"]
    assert len(linear.all("circle")) == 8 and len(linear.all("path", class_="bad")) == 1
    limit = percent(linear.one("line").attributes["x1"])
    assert all(percent(c.attributes["cx"]) < limit for c in linear.all("circle"))
    nan = [e for e in linear.all("svg") if "x" in e.attributes]
    assert percent(nan[0].attributes["x"]) == 100
    silu = strips["silu_mul ops"]
    assert percent(silu.one("circle").attributes["cx"]) == 0  # exact
    assert silu.one("div", class_="worst").text == "inf"
    assert strips["layer 0 to 6 model"].one("svg", class_="track").attributes["aria-label"] == (
        "layer 0 to 6: 7 checks, the worst at 0.5 of what is allowed"
    )


def percent(text: str) -> float:
    return float(text.removesuffix("%"))


@pytest.mark.parametrize("share", [1e-5, 0.02, 0.5, 0.999, 1.0, 1.001, 3.0, 1e7])
def test_the_limit_parts_what_is_allowed_from_what_is_not(share: float) -> None:
    plot = errors([op("a", share * 0.01), op("b", 0.0), op("c", math.nan)])
    assert plot is not None
    points = {point.key: point for point in plot.strips[0].points}
    assert (points[0].at > plot.limit) == points[0].failed == (share > 1)
    assert points[1].at == 0.0 < plot.limit < points[2].at == 100.0
    assert 0 < points[0].at < 100
    assert [t.at for t in plot.scale.ticks if t.label == "1"] == [plot.limit]


def test_what_fails_is_drawn_on_top_of_what_passes() -> None:
    nearer = replace(layer(3), measures={"error": 0.9, "allowed": 1.0})
    plot = errors([layer(2, unexplained=1), nearer])
    assert plot is not None
    (strip,) = plot.strips
    assert [point.failed for point in strip.points] == [False, True] and strip.worst == "0.9"


def test_a_decade_is_as_wide_as_any_other() -> None:
    plot = errors([op(f"{n}", 10.0**n * 0.01) for n in range(-4, 4)])
    assert plot is not None
    at = [point.at for point in plot.strips[0].points]
    widths = [b - a for a, b in zip(at, at[1:], strict=False)]
    assert widths == pytest.approx([widths[0]] * 7)


def test_kl_is_drawn_along_the_sequence_with_plain_pytorchs(root: Element) -> None:
    figure = root.all("figure")[0]
    assert "KL divergence, model head: 20 tokens" in figure.text
    assert "mean 0.00103, largest 0.003 at position 2, 2 values not finite" in figure.text
    assert "plain PyTorch: mean 0.000517" in figure.text
    ours = [p.attributes["d"] for p in figure.one("div", class_="chart").all("path", class_="ours")]
    assert len(ours) == 2  # a gap at NaN, and infinite is a dot alone at the top
    points = [[float(n) for n in p.split()] for p in ours[0].removeprefix("M").split(" L")]
    assert [x for x, _ in points] == [100.0, 300.0, 500.0]
    assert points[1][1] == 100.0 and points[2][1] < points[0][1] < 100  # up is more
    assert ours[1] == "M900.0 0.0 h0"


def test_a_long_sequence_keeps_its_peaks() -> None:
    values = [1e-6] * 131072
    values[77777] = 0.5
    text = render(Report("x", {}, [head(tuple(values))]))
    assert len(text) < 100_000
    path = parse(text).one("div", class_="chart").all("path", class_="ours")[0].attributes["d"]
    heights = [float(point.split()[1]) for point in path.removeprefix("M").split(" L")]
    assert len(heights) <= 400
    assert heights.index(min(heights)) == 77777 // 328
    assert "largest 0.5 at position 77777; " in parse(text).all("figure")[0].text


def test_router_flips_by_layer(root: Element) -> None:
    chart = root.one("div", class_="bars")
    titles = [title.text for title in chart.all("title")]
    assert titles[6] == "layer 6: 1 explained, 4 unexplained" and len(titles) == 7
    heights = [[percent(r.attributes["height"]) for r in g.all("rect")] for g in chart.all("g")]
    assert heights == [[0, 0], [20, 0], [40, 0], [0, 0], [20, 0], [40, 0], [20, 80]]
    assert "7 routers: 7 flips explained by rounding, 4 unexplained" in root.text
    table = next(d for d in root.all("details") if "in numbers" in d.text)
    assert [e.text for e in table.all("tr")[7].walk()] == ["layer 6", "1", "4"]
    calm = page(Report("x", {}, [layer(i) for i in range(92)]))
    assert "92 routers: 0 flips" in calm.text and not calm.all("div", class_="bars")


def test_kinds_of_checks_have_routers_of_their_own() -> None:
    other = [replace(layer(i, 2), name="stream") for i in range(3)]
    root = page(Report("x", {}, [layer(0, 1), layer(1, 1), *other]))
    assert [len(chart.all("g")) for chart in root.all("div", class_="bars")] == [2, 3]
    captions = [caption.text for caption in root.all("figcaption")]
    assert captions == [
        "20 tokens 2 routers: 2 flips explained by rounding, 0 unexplained",
        "stream 3 routers: 6 flips explained by rounding, 0 unexplained",
    ]


def test_a_series_is_drawn_with_what_it_is_compared_with() -> None:
    series = {
        "error": (1e-3, 2e-3), "allowed": (4e-3, 4e-3),
        "accepted": (0.9, 0.5), "reference_accepted": (0.9, 0.6), "margin": (1.0, 3.0),
    }  # fmt: skip
    found = curves([replace(head(), series=series)])
    assert [[line.label for line in curve.lines] for curve in found] == [
        ["error of the backend", "what is allowed"],
        ["accepted of the backend", "accepted of the reference"],
        ["margin of the backend"],
    ]
    assert [type(curve.scale) for curve in found] == [Log, Linear, Linear]


def test_layers_of_a_large_model_are_labelled_sparsely() -> None:
    root = page(Report("x", {}, [layer(i, 1) for i in range(92)]))
    labels = root.one("div", class_="names").all("span")
    assert [label.text for label in labels] == [f"{n}" for n in range(0, 92, 10)]


def test_kernels_are_counted(root: Element) -> None:
    rows = root.one("table", class_="kernels").one("tbody").all("tr")
    assert [[c.text for c in row.children if isinstance(c, Element)] for row in rows] == [
        ["grouped_gemm", "22", "ops linear, ops silu_mul"],
        ["attend", "7", "model layer 0, model layer 1, model layer 2, model layer 3, "
         "model layer 4, model layer 5 and 1 more"],
    ]  # fmt: skip


def test_hostile_text_is_text(root: Element) -> None:
    (script,) = root.all("script")
    assert "alert" not in str(script.children) and not root.all("img")
    assert root.text.count("</script><script>alert(1)</script><img src=x onerror=") == 2
    everywhere = Report(HOSTILE, {HOSTILE: HOSTILE}, [hostile_check(s) for s in Status])
    found = page(everywhere)
    assert len(found.all("script")) == 1 and not found.all("img")
    assert not [a for e in found.walk() for a in e.attributes if a.startswith("on")]
    assert not set("\x1b\x00\ud800") & set(render(everywhere))


def hostile_check(status: Status) -> Check:
    """An attacker's text wherever a check has text."""
    findings = (HOSTILE,) if status is Status.FAIL else ()
    numbers = {HOSTILE: 1.0, "error": 1.0, "allowed": 2.0, "flips_explained": 1.0}
    series = {HOSTILE: (1.0, 2.0)}
    subject = f"layer 1 {HOSTILE}"
    kernels = {HOSTILE: 1}
    return Check("model", subject, HOSTILE, status, findings, numbers, series, kernels, HOSTILE)


def test_the_page_needs_nothing_else() -> None:
    text = render(mixed())
    root = parse(text)
    loading = {"src", "srcset", "data", "action", "background", "poster"}
    assert not [e for e in root.walk() if loading & set(e.attributes)]
    assert not root.all("link") and "url(" not in text.replace("url(#hatch-1)", "")
    assert "@import" not in text and "http" not in text.replace("http-equiv", "")


def test_only_the_pages_own_script_may_run(root: Element) -> None:
    (policy,) = [m for m in root.all("meta") if "http-equiv" in m.attributes]
    (script,) = root.all("script")
    digest = hashlib.sha256("".join(str(c) for c in script.children).encode()).digest()
    said = policy.attributes["content"]
    assert f"script-src 'sha256-{base64.b64encode(digest).decode()}'" in said
    assert "default-src 'none'" in said


def test_without_javascript_all_is_there_and_no_dead_control(root: Element) -> None:
    assert "hidden" in root.one("form").attributes
    assert not [e for e in root.one("tbody", role="rowgroup").walk() if "hidden" in e.attributes]


def test_light_and_dark_define_the_same_colours() -> None:
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    light, dark = (
        {name: value for name, value in re.findall(r"(--[\w-]+): (#\w+);", block)}
        for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    )
    assert light.keys() == dark.keys() == set(re.findall(r"var\((--[\w-]+)\)", style))
    for colours in (light, dark):
        for text in ("--ink", "--quiet", "--ok", "--bad", "--warn", "--ok-word"):
            for ground in ("--ground", "--raised"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)


def contrast(a: str, b: str) -> float:
    """Of WCAG 2; 4.5 is what text needs."""
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
