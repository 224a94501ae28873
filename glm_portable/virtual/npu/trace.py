"""python -m glm_portable.virtual.npu.trace: a whole model's step on one rank, by shapes alone.

    TORCH_DEVICE_BACKEND_AUTOLOAD=0 python -m glm_portable.virtual.npu.trace --model glm-4.5

runs GLM-4.5 or Air as one of 16 devices has it through the Ascend backend on tensors without data.
Every call of an operator goes through torch_npu's own shape inference and through the documented
limits; what is printed is the memory that the calls asked for. No number is computed and no rank
is talked to.
"""

import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from glm_portable.backends.ascend import AscendOps
from glm_portable.backends.ascend.chip import Chip
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.model import Model
from glm_portable.ops import Step
from glm_portable.virtual.npu import standins
from glm_portable.virtual.npu.layout import FractalNz
from glm_portable.virtual.npu.refusal import Refusal, WithoutValues
from glm_portable.virtual.npu.semantics import KERNELS, WITHOUT_META
from glm_portable.virtual.npu.shapes import META, PUBLISHED, Rank, Shapes, implied_bytes

PAGE = 128
CONTEXT = 1024
"""Tokens that each sequence of the decode step has cached."""


class Tracing(TorchDispatchMode):
    """Within it, operators on tensors without data are checked and counted, and memory is followed.

    ran: how often each operator of the chip was called. live, peak: bytes of all tensors' storages
    that were made within it.
    """

    def __init__(self, chip: Chip) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.chip = chip
        self.ran: Counter[str] = Counter()
        self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        namespace, _, name = func._schema.name.partition("::")
        if namespace == "npu":
            result = self._checked(func, name, args, kwargs)
            self.ran[name] += 1
        else:
            result = func(*args, **kwargs)
        for made in tree_leaves(result):
            if isinstance(made, Tensor):
                self._follow(made.rows if isinstance(made, FractalNz) else made)
        return result

    def _checked(self, func: Any, name: str, args: tuple[Any, ...], kwargs: Any) -> Any:
        """torch_npu's result, after its own checks and the documented limits."""
        if name not in KERNELS:
            raise Refusal(f"{name}: its limits are not written down here, so it is not traced.")
        declared = None if name in WITHOUT_META else func(*args, **kwargs)
        plain_args, plain_kwargs = tree_map(_rows, (args, kwargs))
        try:
            result = KERNELS[name](self.chip, *plain_args, **plain_kwargs)
        except WithoutValues:
            return declared
        assert declared is None, f"{name} was computed without values"
        return result

    def _follow(self, made: Tensor) -> None:
        storage = made.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if made.device != META or key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _rows(value: Any) -> Any:
    return value.rows if isinstance(value, FractalNz) else value


@dataclass(frozen=True)
class Traced:
    """One step of one rank: bytes by what they are for, and calls of the chip's operators."""

    split: str
    kind: str
    step: str
    weights: int
    implied: int
    cache: int
    activations: int
    calls: Counter[str]


def steps(prefill: int, decode: int, context: int) -> dict[str, list[tuple[int, int, list[int]]]]:
    """A prompt alone, and one token each of many sequences, as `Step.build` takes them."""
    pages = -(-context // PAGE)
    return {
        f"prefill {prefill:,}": [(0, prefill, list(range(-(-prefill // PAGE))))],
        f"decode {decode:,}": [
            (context - 1, 1, list(range(b * pages, (b + 1) * pages))) for b in range(decode)
        ],
    }


def trace(
    whole: ModelConfig,
    chip: Chip,
    split: str,
    rank: Rank,
    kind: str,
    layouts: dict[str, list[tuple[int, int, list[int]]]],
) -> Iterator[Traced]:
    """Load a rank's shapes and run each step, its MTP layer included. kind: bf16 or w8a8."""
    int8 = kind == "w8a8"
    ops = AscendOps(chip, torch.ops.npu, META)
    with torch.inference_mode(), Tracing(chip) as mode:
        model = Model(whole, ops, cast(Checkpoint, Shapes(whole, rank, int8)))
        held = mode.live
        count = 1 + max(page for rows in layouts.values() for _, _, ps in rows for page in ps)
        caches = model.allocate(count, PAGE)
        cached = mode.live - held
        for name, rows in layouts.items():
            mode.peak, before = mode.live, Counter(mode.ran)
            _run(model, Step.build(rows, PAGE, META), caches)
            used = mode.peak - held - cached
            implied = implied_bytes(whole, rank, int8)
            yield Traced(split, kind, name, held, implied, cached, used, mode.ran - before)


def _run(model: Model, step: Step, caches: Any) -> None:
    """Hidden states, the MTP layer on them, and logits of each sequence's last token."""
    ids = torch.empty(step.query_ends[-1], dtype=torch.int64, device=META)
    hidden = model.forward(ids, step, caches)
    assert model.mtp is not None
    drafted = model.mtp(ids, hidden, step, caches[-1])
    last = step.query_ends_B.long() - 1
    logits = model.logits(hidden[last])
    guesses = model.mtp_logits(drafted[last])
    assert logits.shape == guesses.shape == (len(step.query_ends), model.config.vocab_size)


def traces(
    model: str, soc: str, tp: int, ep: int, prefill: int, decode: int, context: int
) -> Iterator[Traced]:
    """Both formats, split by width and by experts. Raises UsageError for sizes that do not divide.

    Raises Refusal where a call breaks a limit, and whatever torch_npu's shape inference raises.
    """
    whole = PUBLISHED[model]
    standins.load(soc)
    layouts = steps(prefill, decode, context)
    for split, ranks, groups in (("TP", tp, 1), ("EP", ep, ep)):
        for kind in ("bf16", "w8a8"):
            rank = Rank(ranks, groups)
            yield from trace(whole, Chip.named(soc), f"{split}{ranks}", rank, kind, layouts)


HEADINGS = (
    "split", "format", "step", "weights GiB", "by format GiB", "KV GiB", "activations MiB",
    "operator calls",
)  # fmt: skip


@click.command()
@click.option("--model", type=click.Choice(list(PUBLISHED)), default="glm-4.5", show_default=True)
@click.option("--chip", default="Ascend910_9391", show_default=True)
@click.option("--tp", default=16, show_default=True, help="Devices that split every expert.")
@click.option("--ep", default=16, show_default=True, help="Devices that share the experts out.")
@click.option("--prefill", default=4096, show_default=True, help="Tokens of the prompt.")
@click.option("--decode", default=256, show_default=True, help="Sequences, a token each.")
@click.option("--context", default=CONTEXT, show_default=True, help="Tokens cached of each.")
@click.option("--calls", is_flag=True, help="Print how often each operator was called.")
def main(model: str, chip: str, calls: bool, **sizes: int) -> None:
    """Trace one rank of MODEL: no rejected call, and the memory of a device."""
    try:
        found = list(traces(model, chip, **sizes))
    except (UsageError, Refusal) as error:
        raise click.ClickException(str(error)) from error
    console = Console(width=120, highlight=False)
    console.print(table(f"{model} on {chip}, one device", found))
    console.print(f"{len(found)} steps, {sum(t.calls.total() for t in found):,} calls, 0 refused.")
    if calls:
        for name, count in sorted(sum((t.calls for t in found), Counter()).items()):
            console.print(f"{count:7,}  {name}")


def table(title: str, found: Sequence[Traced]) -> Table:
    made = Table(*HEADINGS, title=title)
    for t in found:
        sizes = [f"{n / 2**30:.3f}" for n in (t.weights, t.implied, t.cache)]
        made.add_row(
            t.split, t.kind, t.step, *sizes,
            f"{t.activations / 2**20:,.1f}", f"{t.calls.total():,}",
        )  # fmt: skip
    return made


if __name__ == "__main__":
    main(prog_name="python -m glm_portable.virtual.npu.trace")
