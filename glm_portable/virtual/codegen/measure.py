"""Compile all cases in several processes, and say what is wrong with each."""

import multiprocessing
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

from triton import knobs

from glm_portable.virtual.codegen.cases import Case, everything, quick
from glm_portable.virtual.codegen.expectation import gate
from glm_portable.virtual.codegen.inspecting import inspect
from glm_portable.virtual.codegen.metrics import Metrics
from glm_portable.virtual.codegen.peers import Peer
from glm_portable.virtual.codegen.remarks import REMARKS


@dataclass(frozen=True)
class Result:
    """metrics: None if the kernel did not compile. findings: what is wrong, in sentences."""

    case: Case
    metrics: Metrics | None
    findings: Sequence[str]


def measure(
    archs: Iterable[str], kernel: str = "", processes: int = 2, only_quick: bool = False
) -> Iterator[Result]:
    """Results in the order of the cases, each as soon as it is there.

    kernel: only kernels whose name contains this. only_quick: see cases.quick. The compiler's
    cache is fresh and temporary: a number never comes from an older compiler.
    """
    chosen = [
        (arch, index, case)
        for arch in archs
        for index, case in enumerate(_cases(arch, only_quick))
        if kernel in case.kernel
    ]
    context = multiprocessing.get_context("spawn")  # the compiler's threads do not survive a fork
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(processes, context, _start, (folder,)) as pool,
    ):
        places = [(arch, only_quick, index) for arch, index, _ in chosen]
        measured = pool.map(_measure, places)
        for (_, _, case), (metrics, error) in zip(chosen, measured, strict=True):
            yield Result(case, metrics, [error] if metrics is None else findings(case, metrics))


def findings(case: Case, metrics: Metrics) -> list[str]:
    """What the gate says, and a row that a peer does better without a reason why."""
    found = gate(metrics, case.expectation)
    for peer in better_peers(case, metrics):
        if (case.target, case.configuration) not in REMARKS:
            found.append(
                f"{metrics.kernel} on {case.target} asks for more than {peer.engine} "
                f"{peer.configuration} does ({_demand(metrics)} against {_demand(peer)})."
            )
    return [f"{sentence} ({case.configuration})" for sentence in found]


def better_peers(case: Case, metrics: Metrics) -> list[Peer]:
    """The peers whose hot loop asks less of the vector unit than ours, for each matrix instruction
    or for its cycles; on NVIDIA, where peers' loops are not known, whose kernel is shorter."""
    return [peer for peer in case.peers if _is_better(peer, metrics)]


def _is_better(peer: Peer, metrics: Metrics) -> bool:
    loop = metrics.loop
    if peer.valu is None or peer.pressure is None:
        return metrics.instruction_count > peer.instructions
    return loop.pressure > peer.pressure or loop.valu_per_matrix > peer.valu / peer.matrix[1]


def _demand(row: Metrics | Peer) -> str:
    if isinstance(row, Metrics):
        return (
            f"{row.loop.valu_per_matrix:.2f} VALU instructions and {row.loop.pressure:.2f} cycles "
            f"for each of the matrix unit, {row.instruction_count} instructions in all"
        )
    if row.valu is None:
        return f"{row.instructions} instructions in all"
    return f"{row.valu / row.matrix[1]:.2f} and {row.pressure:.2f}"


def _start(folder: str) -> None:
    os.environ["TRITON_CACHE_DIR"] = folder
    assert not knobs.runtime.interpret


@cache
def _cases(arch: str, only_quick: bool) -> list[Case]:
    return list(quick(arch) if only_quick else everything(arch))


def _measure(place: tuple[str, bool, int]) -> tuple[Metrics | None, str]:
    """Each process lists the cases itself: kernels do not travel between processes."""
    case = _cases(*place[:2])[place[2]]
    try:
        return inspect(
            case.launch.kernel, case.launch.arguments, case.target, case.launch.options
        ), ""
    except Exception as error:  # whatever the compiler raises is this case's finding
        return None, f"{case.kernel} on {case.target} does not compile: {error}"
