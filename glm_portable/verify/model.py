"""A whole model on one backend against the reference, as a stream of verdicts.

`checks` runs prompts in a prefill and some decode steps through the backend and through the
reference in float64, and says part by part how far apart they are; plain PyTorch in the backend's
type is the yardstick (see metrics).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch

from glm_portable import ops
from glm_portable.ops import Ops
from glm_portable.verify.layers import Compared, Runner, compare
from glm_portable.verify.metrics import FLOOR, K
from glm_portable.verify.results import Check, Status
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Watched

PARTS = ("layers",)


@dataclass(frozen=True)
class Options:
    """prefill, decode: tokens of the prompt in one step, and one at a time. parts: of PARTS."""

    prefill: int = 17
    decode: int = 2
    parts: tuple[str, ...] = PARTS


DEFAULTS = Options()


def checks(machine: Ops, subject: Subject, options: Options = DEFAULTS) -> Iterator[Check]:
    """Every verdict on a subject's model on a backend, the one on what ran last."""
    watched = Watched(machine)
    ours = Runner(subject.judged(cast(Ops, watched)), watched, counts=True)
    if "layers" in options.parts:
        yield from _layers(ours, subject, options)
    yield _kernels(watched)


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


def _layers(ours: Runner, subject: Subject, options: Options) -> Iterator[Check]:
    ids = subject.prompt(options.prefill + options.decode + 1)
    name = f"prefill {options.prefill}, decode {options.decode}"
    for part in compare(ours, *references(subject), ids, options.decode):
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
