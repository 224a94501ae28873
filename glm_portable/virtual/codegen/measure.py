"""Compile all cases in several processes, and say what is wrong with each."""

import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

from triton import knobs

from glm_portable.virtual.codegen.cases import Case, cases
from glm_portable.virtual.codegen.expectation import gate
from glm_portable.virtual.codegen.inspecting import inspect
from glm_portable.virtual.codegen.metrics import Metrics
from glm_portable.virtual.codegen.remarks import REMARKS


@dataclass(frozen=True)
class Result:
    """metrics: None if the kernel did not compile. findings: what is wrong, in sentences."""

    case: Case
    metrics: Metrics | None
    findings: Sequence[str]


def measure(archs: Iterable[str], kernel: str = "", processes: int = 2) -> Iterator[Result]:
    """Results in the order of the cases, each as soon as it is there.

    kernel: only kernels whose name contains this. The compiler's cache is fresh and temporary: a
    number never comes from an older compiler.
    """
    chosen = [
        (arch, index, case)
        for arch in archs
        for index, case in enumerate(cases(arch))
        if kernel in case.kernel
    ]
    context = multiprocessing.get_context("spawn")  # the compiler's threads do not survive a fork
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, context, _start, (folder,)) as pool,
    ):
        places = [(arch, index) for arch, index, _ in chosen]
        measured = pool.map(_measure, places)
        for (_, _, case), (metrics, error) in zip(chosen, measured, strict=True):
            yield Result(case, metrics, [error] if metrics is None else findings(case, metrics))


def findings(case: Case, metrics: Metrics) -> list[str]:
    """What the gate says, and a row that a peer does better without a reason why."""
    found = gate(metrics, case.expectation)
    if above_peer(case, metrics) and (case.target, case.configuration) not in REMARKS:
        assert case.peer is not None
        found.append(
            f"{metrics.kernel} on {case.target} issues {metrics.loop.pressure:.2f} cycles of VALU "
            f"for each cycle of matrix work, {case.peer.engine} {case.peer.pressure:.2f}."
        )
    return [f"{sentence} ({case.configuration})" for sentence in found]


def above_peer(case: Case, metrics: Metrics) -> bool:
    """Whether the peer's hot loop asks for less of the vector unit than ours."""
    theirs = case.peer.pressure if case.peer else None
    return theirs is not None and metrics.loop.pressure > theirs


def _start(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder
    assert not knobs.runtime.interpret


_cases = cache(lambda arch: list(cases(arch)))


def _measure(place: tuple[str, int]) -> tuple[Metrics | None, str]:
    """Each process lists the cases itself: kernels do not travel between processes."""
    case = _cases(place[0])[place[1]]
    try:
        return inspect(
            case.launch.kernel, case.launch.arguments, case.target, case.launch.options
        ), ""
    except Exception as error:  # whatever the compiler raises is this case's finding
        return None, f"{case.kernel} on {case.target} does not compile: {error}"
