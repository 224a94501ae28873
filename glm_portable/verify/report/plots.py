"""What the plots of the page show, in percent of their frames; the template only draws it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from glm_portable.verify.report.groups import Group, grouped, ratio
from glm_portable.verify.report.scale import Linear, Log
from glm_portable.verify.report.text import count, figure
from glm_portable.verify.results import Check, Status

MOST_POINTS = 400
"""Of a line: what is longer is drawn by the largest value of each stretch."""
PREFIXES = {"plain_": "plain PyTorch", "reference_": "the reference"}
"""A series of such a name and another's is drawn with the other; whose it is."""
LOGARITHMIC = {"kl", "error", "difference"}
"""Series that are read by their decades."""


@dataclass(frozen=True)
class Point:
    """One check. key: its place in the report."""

    key: int
    at: float
    failed: bool
    title: str


@dataclass(frozen=True)
class Strip:
    """The checks of one subject along error / allowed."""

    level: str
    label: str
    points: Sequence[Point]
    worst: str


@dataclass(frozen=True)
class Errors:
    """Strips, over one scale. limit: where error = allowed is."""

    strips: Sequence[Strip]
    scale: Log
    limit: float


def errors(checks: Sequence[Check]) -> Errors | None:
    """error / allowed of every check that has both, a strip a subject; None if none has."""
    keys = {id(check): key for key, check in enumerate(checks)}
    measured = [check for check in checks if ratio(check) is not None]
    if not measured:
        return None
    scale = Log.over((_ratio(check) for check in measured), 0.01, 10.0)
    strips = [
        _strip(group, scale, keys) for groups in grouped(measured).values() for group in groups
    ]
    return Errors(strips, scale, scale.at(1.0))


def _strip(group: Group, scale: Log, keys: dict[int, int]) -> Strip:
    # What fails is drawn last, on top, even if it fails for something else than its error.
    ordered = sorted(group.checks, key=lambda c: (c.status is Status.FAIL, _ratio(c)))
    points = [
        Point(
            keys[id(check)],
            scale.at(_ratio(check)),
            check.status is Status.FAIL,
            f"{check.subject}: {check.name}: {figure(_ratio(check))} of what is allowed",
        )
        for check in ordered
    ]
    return Strip(group.level, group.label, points, figure(max(map(_ratio, ordered))))


def _ratio(check: Check) -> float:
    share = ratio(check)
    assert share is not None
    return share


@dataclass(frozen=True)
class Bar:
    """The error of one check and what is allowed, on a scale that all checks share."""

    error: float
    allowed: float
    text: str


def bar(check: Check, scale: Log) -> Bar | None:
    """None for a check without an error."""
    error, allowed = check.measures.get("error"), check.measures.get("allowed")
    share = ratio(check)
    if error is None or allowed is None or share is None:
        return None
    text = f"{figure(error)} of {figure(allowed)} allowed ({figure(share)})"
    return Bar(scale.at(error), scale.at(allowed), text)


def bar_scale(checks: Iterable[Check]) -> Log:
    """For `bar`: absolute errors and limits of all checks."""
    return Log.over(
        [c.measures[n] for c in checks for n in ("error", "allowed") if n in c.measures]
    )


@dataclass(frozen=True)
class Line:
    """paths: SVG paths in a frame of 1000 x 100, y downwards; a new one after a gap."""

    label: str
    paths: Sequence[str]


@dataclass(frozen=True)
class Curve:
    """A series of one check, and plain PyTorch's beside it if there is one."""

    title: str
    what: str
    lines: Sequence[Line]
    scale: Log | Linear
    length: int
    summary: str


KINDS = ("explained", "unexplained")
WIDEST = 6.0
"""Of a bar, in percent."""
NAMES = {"kl": "KL divergence"}


def curves(checks: Iterable[Check]) -> list[Curve]:
    """Every series of every check, those that fail first."""
    ordered = sorted(checks, key=lambda check: check.status is not Status.FAIL)
    return [
        _curve(check, name)
        for check in ordered
        for name, values in check.series.items()
        if values and name not in {_beside(check, other)[0] for other in check.series}
    ]


def _beside(check: Check, name: str) -> tuple[str, str]:
    """The series that is drawn with another, and what it is; empty if there is none."""
    for prefix, whose in PREFIXES.items():
        if prefix + name in check.series:
            return prefix + name, f"{NAMES.get(name, name)} of {whose}"
    if name == "error" and "allowed" in check.series:
        return "allowed", "what is allowed"
    return "", ""


def _curve(check: Check, name: str) -> Curve:
    other, label = _beside(check, name)
    ours, plain = check.series[name], check.series.get(other, ())
    scale = (Log if name in LOGARITHMIC else Linear).over([*ours, *plain])
    what = NAMES.get(name, name)
    lines = [Line(f"{what} of the backend", _paths(ours, scale))]
    summary = _summary(ours)
    if plain:
        lines.append(Line(label, _paths(plain, scale)))
        summary += f"; {label}: {_summary(plain)}"
    if (stretch := _stretch(len(ours))) > 1:
        summary += f"; each point is the largest of {stretch}"
    title = f"{check.level} {check.subject}: {check.name}"
    return Curve(title, what, lines, scale, len(ours), summary)


def _summary(values: Sequence[float]) -> str:
    finite = [v for v in values if math.isfinite(v)]
    text = f"{len(values) - len(finite)} values not finite" if len(finite) < len(values) else ""
    if not finite:
        return text
    worst = max(finite)
    mean = figure(sum(finite) / len(finite))
    found = f"mean {mean}, largest {figure(worst)} at position {list(values).index(worst)}"
    return f"{found}, {text}" if text else found


def _stretch(length: int) -> int:
    return -(-length // MOST_POINTS)


def _paths(values: Sequence[float], scale: Log | Linear) -> list[str]:
    """NaN is a gap. A point alone is a path of no length, which a round cap makes a dot."""
    stretch = _stretch(len(values))
    paths: list[list[str]] = [[]]
    for begin in range(0, len(values), stretch):
        numbers = [v for v in values[begin : begin + stretch] if not math.isnan(v)]
        if not numbers:
            paths.append([])
            continue
        x = 1000 * (begin + stretch / 2) / len(values)
        paths[-1].append(f"{x:.1f} {100 - scale.at(max(numbers)):.1f}")
    return [f"M{' L'.join(path)}{' h0' if len(path) == 1 else ''}" for path in paths if path]


@dataclass(frozen=True)
class Flips:
    """One layer's router. x and width in percent; heights in percent of the most flips."""

    layer: str
    explained: int
    unexplained: int
    x: float = 0.0
    width: float = 0.0
    explained_height: float = 0.0
    unexplained_height: float = 0.0
    labelled: bool = False

    @property
    def text(self) -> str:
        return f"{self.layer}: {self.explained} explained, {self.unexplained} unexplained"


@dataclass(frozen=True)
class Routers:
    """Layers in order, as one kind of check saw them; most: flips of the layer that has most."""

    name: str
    layers: Sequence[Flips]
    most: int

    @property
    def summary(self) -> str:
        explained, unexplained = (
            sum(getattr(layer, name) for layer in self.layers) for name in KINDS
        )
        routers = count(len(self.layers), "router")
        return f"{routers}: {explained} flips explained by rounding, {unexplained} unexplained"


def routers(checks: Iterable[Check]) -> list[Routers]:
    """Router flips by layer, of checks of level "model"; one plot for all of the same name."""
    found: dict[str, list[Flips]] = {}
    for check in checks:
        if check.level == "model" and any(f"flips_{name}" in check.measures for name in KINDS):
            explained, unexplained = (_whole(check, f"flips_{name}") for name in KINDS)
            flips = Flips(check.subject, explained, unexplained)
            found.setdefault(check.name, []).append(flips)
    return [_placed(name, layers) for name, layers in found.items()]


def _placed(name: str, layers: Sequence[Flips]) -> Routers:
    most = max(flips.explained + flips.unexplained for flips in layers)
    step, each = -(-len(layers) // 10), 100 / len(layers)
    width = min(0.8 * each, WIDEST)
    placed = [
        replace(
            flips,
            x=(i + 0.5) * each - width / 2,
            width=width,
            explained_height=100 * flips.explained / max(most, 1),
            unexplained_height=100 * flips.unexplained / max(most, 1),
            labelled=i % step == 0,
        )
        for i, flips in enumerate(layers)
    ]
    return Routers(name, placed, most)


def _whole(check: Check, name: str) -> int:
    value = check.measures.get(name, 0.0)
    return int(value) if math.isfinite(value) else 0


def short(layer: str) -> str:
    """The number of a layer, for an axis; its whole name if it has none."""
    number = re.search(r"\d+", layer)
    return number.group() if number else layer
