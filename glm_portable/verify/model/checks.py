"""A whole model on one backend against the reference, as a stream of verdicts.

`checks` runs prompts through the backend and through the reference in float64, or against what a
golden file keeps of it, and says part by part how far apart they are; plain PyTorch in the
backend's type is the yardstick (see metrics).
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import cast

import torch

from glm_portable import ops
from glm_portable.ops import Ops
from glm_portable.verify.golden.build import check_subject, in_memory
from glm_portable.verify.golden.record import Golden
from glm_portable.verify.metrics import FLOOR, K
from glm_portable.verify.model import drafts, generation, needles
from glm_portable.verify.model.against import forced, judged
from glm_portable.verify.model.layers import Compared, Runner, compare
from glm_portable.verify.model.paths import consistent
from glm_portable.verify.model.walk import prefill
from glm_portable.verify.results import Check, Status
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Refused, Watched

PARTS = ("layers", "stream", "paths", "free", "drafts", "greedy", "needles")
LENGTHS = (35, 19)
"""Tokens of the prompts where there is no golden file: three pages and two."""


@dataclass(frozen=True)
class Options:
    """prefill, decode: tokens of the prompt in one step, and one at a time. parts: of PARTS.

    golden: compare with it instead of running the reference; then "layers", "greedy" and
    "needles", which need the reference beside the backend, are skipped. lengths: of prompts with
    a needle.
    """

    prefill: int = 17
    decode: int = 2
    parts: tuple[str, ...] = PARTS
    golden: Golden | None = None
    lengths: tuple[int, ...] = ()


DEFAULTS = Options()
LIVE = ("layers", "greedy", "needles")
NEEDS_LIVE = "it needs the reference beside the backend: --reference live, where that can run"


def checks(machine: Ops, subject: Subject, options: Options = DEFAULTS) -> Iterator[Check]:
    """Every verdict on a subject's model on a backend, the one on what ran last."""
    begin = time.monotonic()
    for check in _checks(machine, subject, options):
        now = time.monotonic()
        yield replace(check, seconds=now - begin)
        begin = now


def _checks(machine: Ops, subject: Subject, options: Options) -> Iterator[Check]:
    watched = Watched(machine)
    try:
        ours = Runner(subject.judged(cast(Ops, watched)), watched, counts=True)
    except Refused as refusal:
        yield Check("model", "weights", subject.kind, Status.UNSUPPORTED, note=str(refusal))
        return
    live = options.golden is None
    parts = [part for part in options.parts if live or part not in LIVE]
    for part in options.parts:
        if part not in parts:
            yield Check("model", part, "golden file", Status.SKIPPED, note=NEEDS_LIVE)
    exact = references(subject) if live and set(parts) & set(LIVE) else None
    if exact is not None and "layers" in parts:
        yield from _layers(ours, exact, subject, options)
    if set(parts) & {"stream", "paths", "free", "drafts"}:
        yield from _against(ours, _golden(subject, options), parts)
    if exact is not None and "greedy" in parts:
        yield from generation.greedy(ours, exact, subject)
    if exact is not None and "needles" in parts:
        for length in options.lengths:
            yield from needles.needle(ours, exact, subject, length)
    yield _kernels(watched)


def _golden(subject: Subject, options: Options) -> Golden:
    if options.golden is None:
        return in_memory(subject, [subject.prompt(n, s) for s, n in enumerate(LENGTHS)])
    check_subject(options.golden, subject)
    return options.golden


def _against(ours: Runner, golden: Golden, parts: list[str]) -> Iterator[Check]:
    path = prefill(golden.prompts)
    whole = forced(ours, golden, path)
    if "stream" in parts:
        yield from judged(ours, golden, whole, path)
    if "drafts" in parts and "mtp.top" in golden.tensors:
        yield drafts.acceptance(ours, golden, whole)
    if "free" in parts:
        yield from generation.free(ours, golden)
    if "paths" in parts:
        yield from consistent(ours, golden, whole)


def runners(subject: Subject, machine: Ops) -> tuple[Runner, Runner, Runner]:
    """The same checkpoint on the machine, on the reference in its type, and in float64."""
    watched = Watched(machine)
    ours = Runner(subject.judged(cast(Ops, watched)), watched, counts=True)
    return ours, *references(subject)


def references(subject: Subject) -> tuple[Runner, Runner]:
    """The model on the reference in its type, and in float64."""
    found = []
    for dtype in (torch.bfloat16, torch.float64):
        watched = Watched(ops.load("reference"))
        found.append(Runner(subject.model(dtype, cast(Ops, watched)), watched))
    return found[0], found[1]


def _layers(
    ours: Runner, references: tuple[Runner, Runner], subject: Subject, options: Options
) -> Iterator[Check]:
    ids = subject.prompt(options.prefill + options.decode + 1)
    name = f"prefill {options.prefill}, decode {options.decode}"
    for part in compare(ours, *references, ids, options.decode):
        yield verdict(part, name)


def verdict(part: Compared, name: str) -> Check:
    """What `compare` found of one part, as a check."""
    measures = {
        "tokens": float(part.tokens),
        "error": part.ours.error,
        "allowed": K * part.plain.error + FLOOR,
        "slope": part.ours.slope,
        "tail": part.ours.tail,
    }
    if part.flips is not None:
        flipped, wrong = (int(t.sum()) for t in (part.flips.flipped_T, part.flips.unexplained_T))
        measures |= {"flips_explained": flipped - wrong, "flips_unexplained": wrong}
    series = {}
    if part.kl is not None and part.plain_kl is not None:
        measures |= {
            "kl_mean": part.kl.mean().item(),
            "kl_p999": part.kl.quantile(0.999).item(),
            "kl_max": part.kl.max().item(),
            "plain_kl_mean": part.plain_kl.mean().item(),
            "same_top": part.same_top / part.tokens,
        }
        series = {"kl": part.kl.tolist(), "plain_kl": part.plain_kl.tolist()}
    status = Status.FAIL if part.findings else Status.PASS
    return Check("model", part.part, name, status, tuple(part.findings), measures, series)


def _kernels(watched: Watched) -> Check:
    found = tuple(watched.missing())
    products = ", ".join(f"{name} x {n}" for name, n in sorted(watched.products.items())) or "none"
    return Check(
        "model",
        "kernels",
        "seen to run",
        Status.FAIL if found else Status.PASS,
        found,
        kernels=dict(watched.kernels),
        note=f"matrix products of torch: {products}",
    )
