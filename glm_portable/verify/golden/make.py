"""Making a golden file: all prompts through one layer after the other.

Three runs go through a layer: the exact one, plain PyTorch in BF16 with the exact run's experts,
and beside it, in the same steps, plain PyTorch with its own. What is kept of a layer are
fingerprints; what the next one needs are the residual streams alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.backends import reference
from glm_portable.checkpoint import Checkpoint
from glm_portable.config import ModelConfig
from glm_portable.model import MTP, Layer, Rotary
from glm_portable.ops import KVCache, Ops, Step, Weight
from glm_portable.verify.golden.fingerprint import project, rms
from glm_portable.verify.golden.head import Summary, kl, of_blocks
from glm_portable.verify.golden.record import HIDDEN, KEYS, VALUES
from glm_portable.verify.golden.streamed import Streamed, Streaming
from glm_portable.verify.metrics import Distance, distance
from glm_portable.verify.model.layers import SLOTS
from glm_portable.verify.routing import margin, noise
from glm_portable.verify.subject import Subject
from glm_portable.verify.watch import Routing, Watched

Prompts = Sequence[Sequence[int]]


@dataclass
class Kept:
    """What is kept so far; the fields are those of `Golden`."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, Distance] = field(default_factory=dict)
    noise: dict[str, float] = field(default_factory=dict)

    def compare(self, part: str, exact: Tensor, plain: Tensor) -> None:
        """How far plain PyTorch is from the exact result, both projected."""
        self.plain[part] = distance(plain, exact)


@dataclass(frozen=True)
class Gate:
    """A router, when the experts that it chooses from are gone."""

    config: ModelConfig
    gate: Tensor
    bias: Tensor


@dataclass
class Run:
    """One precision. copies: of the prompts, side by side. x, residual: the stream, in the two
    parts that a layer hands on."""

    weights: Streamed
    copies: int
    x: Tensor = field(default_factory=lambda: torch.empty(0))
    residual: Tensor | None = None
    cache: KVCache | None = None
    routing: Routing | None = None

    @property
    def stream(self) -> Tensor:
        """Summed up as `rms_norm` does."""
        return self.x if self.residual is None else self.x + self.residual


class Maker:
    """`embed`, then `layer` for each, then `finish`; `kept` is what was found so far."""

    def __init__(self, subject: Subject, prompts: Prompts, dtype: torch.dtype) -> None:
        self.prompts, self.config, self.kept = prompts, subject.config, Kept()
        self.used = sorted({i for ids in prompts for i in ids})
        self.count = sum(len(ids) - 1 for ids in prompts)
        self.exact = Run(Streamed(subject, dtype, self.used), copies=1)
        self.plain = Run(Streamed(subject, torch.bfloat16, self.used), copies=2)
        self.entered = torch.empty(0)  # plain PyTorch's stream as it entered the layer, projected
        self._watched = Watched(cast(Ops, Streaming()))

    @property
    def has_mtp(self) -> bool:
        prefix = f"model.layers.{self.config.num_hidden_layers}"
        wanted = self.config.num_nextn_predict_layers > 0
        return wanted and self.exact.weights.has(f"{prefix}.eh_proj.weight")

    @torch.inference_mode()
    def embed(self) -> None:
        """The stream as it enters the first layer."""
        for run in (self.exact, self.plain):
            run.x = F.embedding(self._compact(0).repeat(run.copies), run.weights.embedding())
        self._keep_stream(0)
        self.kept.tensors["rerouted"] = torch.zeros(self.count, dtype=torch.uint8)

    @torch.inference_mode()
    def layer(self, i: int) -> None:
        """All runs through layer i."""
        gate = None
        for run in (self.exact, self.plain):
            layer = Layer(self.config, self._ops, cast(Checkpoint, run.weights), i)
            gate = gate or _gate(layer)
            step = self._begin(run)
            rotary = Rotary.at(step.positions_T, self.config, run.weights.dtype)
            assert run.cache is not None
            run.x, run.residual = layer(run.x, run.residual, rotary, run.cache, step)
            self._end(run)
            del layer
        self._keep_layer(i, gate)
        self._keep_stream(i + 1)

    def skip(self, layers: int) -> None:
        """Count the weights of the first layers, and the embedding, as used."""
        for run in (self.exact, self.plain):
            run.weights.skip_prefix("model.embed_tokens.")
            for i in range(layers):
                run.weights.skip_prefix(f"model.layers.{i}.")

    @torch.inference_mode()
    def finish(self) -> None:
        """The last norm, the head and the MTP layer; raises UsageError for unused weights."""
        exact, plain = (self._normed(run) for run in (self.exact, self.plain))
        forced, free = plain[: self.count], plain[self.count :]
        self._keep_hidden("", exact, forced)
        top = self._logits("", exact, forced)
        v, weights = self.config.vocab_size, self.plain.weights
        loose = of_blocks(free, weights.head(), v, top.ids_TN)
        self.kept.tensors["kl.free"] = kl(loose, top.logprobs_TN, top.tail_T).float()
        same = self.kept.tensors["rerouted"] == 0
        same |= ~same.any()  # with all re-routed, all are judged
        off_TN = (loose.logprobs_TN - top.logprobs_TN).abs()
        self.kept.noise["free"] = off_TN[same].max().item()
        self.kept.tensors |= {
            "top.ids": top.ids_TN.int(),
            "top.logprobs": top.logprobs_TN.float(),
            "tail": top.tail_T.float(),
        }
        if self.has_mtp:
            self._mtp(exact, plain)
        for run in (self.exact, self.plain):
            run.weights.finish()

    def _mtp(self, exact: Tensor, plain: Tensor) -> None:
        drafted, gate = [], None
        for run, hidden in ((self.exact, exact), (self.plain, plain)):
            nothing = Weight(torch.empty(0), run.weights.dtype)
            weights = cast(Checkpoint, run.weights)
            mtp = MTP(self.config, self._ops, weights, run.weights.embedding(), nothing)
            gate = gate or _gate(mtp.layer)
            step = self._begin(run)
            assert run.cache is not None
            drafted.append(mtp(self._compact(1).repeat(run.copies), hidden, step, run.cache))
            self._end(run)
            del mtp
        self._keep_layer(self.config.num_hidden_layers, gate)
        forced = drafted[1][: self.count]
        self._keep_hidden("mtp.", drafted[0], forced)
        top = self._logits("mtp.", drafted[0], forced)
        self.kept.tensors |= {
            "mtp.top": top.ids_TN[:, 0].int(),
            "mtp.margin": top.margin_T.float(),
        }

    @property
    def _ops(self) -> Ops:
        return cast(Ops, self._watched)

    def _compact(self, shift: int) -> Tensor:
        """Each row's token, or the one `shift` behind it, as its place among those used."""
        place = {token: i for i, token in enumerate(self.used)}
        rows = [ids[shift : len(ids) - 1 + shift] for ids in self.prompts]
        return torch.tensor([place[token] for ids in rows for token in ids])

    def _begin(self, run: Run) -> Step:
        """A step of all the run's rows, an empty cache, and what its router must choose."""
        counts = [len(ids) - 1 for ids in self.prompts] * run.copies
        pages, layout = 0, []
        for count in counts:
            need = -(-count // SLOTS)
            layout.append((0, count, list(range(pages, pages + need))))
            pages += need
        cpu = torch.device("cpu")
        run.cache = KVCache.allocate(self.config, pages, SLOTS, run.weights.dtype, cpu)
        self._watched.routings.clear()
        if run is self.plain and self.exact.routing is not None:
            given = self.exact.routing.experts_TK
            self._watched.replayed = [torch.cat([given, torch.full_like(given, -1)])]
        return Step.build(layout, SLOTS, cpu)

    def _end(self, run: Run) -> None:
        run.routing = self._watched.routings[0] if self._watched.routings else None

    def _normed(self, run: Run) -> Tensor:
        norm = run.weights.tensor("model.norm.weight", (self.config.hidden_size,))
        return reference.rms_norm(run.x, norm, self.config.rms_norm_eps, run.residual)[0]

    def _keep_stream(self, i: int) -> None:
        exact, plain = self.exact.stream, self.plain.stream[: self.count]
        self.kept.tensors[f"stream.{i}"] = project(exact, i).float()
        self.kept.tensors[f"rms.{i}"] = rms(exact).float()
        here = project(plain, i)
        if i > 0:  # what the layer before added, by the stored numbers
            before, after = (self.kept.tensors[f"stream.{j}"].double() for j in (i - 1, i))
            self.kept.compare(f"layer {i - 1}", after - before, here - self.entered)
        self.entered = here

    def _keep_layer(self, i: int, gate: Gate | None) -> None:
        """Of its cache and its router."""
        for name, seed in (("keys", KEYS), ("values", VALUES)):
            exact, plain = (_cached(run, name, self.prompts) for run in (self.exact, self.plain))
            kept = self.kept.tensors[f"{name}.{i}"] = project(exact, seed).float()
            self.kept.compare(f"{name} {i}", kept, project(plain, seed))
        exact_routing, plain_routing = self.exact.routing, self.plain.routing
        if gate is None or exact_routing is None or plain_routing is None:
            return
        forced = Routing(plain_routing.x_TD[: self.count], plain_routing.experts_TK[: self.count])
        self.kept.tensors[f"experts.{i}"] = exact_routing.experts_TK.short()
        self.kept.tensors[f"margin.{i}"] = margin(exact_routing.x_TD, gate).float()
        self.kept.noise[f"layer {i}"] = noise(forced, exact_routing, gate)
        if i < self.config.num_hidden_layers:
            free = plain_routing.experts_TK[self.count :]
            other = (free.sort(-1).values != exact_routing.experts_TK.sort(-1).values).any(-1)
            self.kept.tensors["rerouted"] |= other.to(torch.uint8)

    def _keep_hidden(self, prefix: str, exact: Tensor, plain: Tensor) -> None:
        kept = self.kept.tensors[f"{prefix}hidden"] = project(exact, HIDDEN).float()
        self.kept.compare(f"{prefix}hidden", kept, project(plain, HIDDEN))

    def _logits(self, prefix: str, exact: Tensor, plain: Tensor) -> Summary:
        """Of the exact run; keeps its projection and plain PyTorch's distances from it."""
        v, mtp = self.config.vocab_size, prefix != ""
        top = of_blocks(exact, self.exact.weights.head(mtp), v)
        rounded = of_blocks(plain, self.plain.weights.head(mtp), v, top.ids_TN)
        kept = self.kept.tensors[f"{prefix}logits"] = top.projected_TW.float()
        self.kept.compare(f"{prefix}logits", kept, rounded.projected_TW)
        self.kept.tensors[f"{prefix}kl.plain"] = kl(rounded, top.logprobs_TN, top.tail_T).float()
        off = (rounded.logprobs_TN - top.logprobs_TN).abs().max().item()
        self.kept.noise["mtp" if mtp else "logits"] = off
        return top


def _gate(layer: Layer) -> Gate | None:
    moe = layer.moe
    return None if moe is None else Gate(moe.config, moe.gate, moe.bias)


def _cached(run: Run, name: str, prompts: Prompts) -> Tensor:
    """Keys or values of the first copy's rows, one behind the other."""
    assert run.cache is not None
    pages = run.cache.k_PSGC if name == "keys" else run.cache.v_PSGC
    rows, begin = [], 0
    for ids in prompts:
        need = -(-(len(ids) - 1) // SLOTS)
        rows.append(pages[begin : begin + need].flatten(0, 1)[: len(ids) - 1])
        begin += need
    return torch.cat(rows).flatten(1)
