"""A model on a backend against the reference: layer by layer, then as a whole.

Layer by layer, errors must not add up, or a fault in layer 1 would hide one in layer 9. So every
layer of every model gets the residual stream of the exact model, rounded to the model's type, and
what it adds to the stream is compared. Keys and values are each model's own. Tokens that a router
sent to other experts, here or in plain PyTorch, are left out of a layer's error, and counted.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.model import Model, MoE, Rotary
from glm_portable.ops import KVCache, Step
from glm_portable.verify.metrics import FLOOR, Distance, K, distance, faults
from glm_portable.verify.routing import Flips, flips
from glm_portable.verify.watch import Routing, Watched

SLOTS = 16
WHOLE_SLOPE = 0.01
"""Of a model left to itself: a token's logits err together, so their slope scatters more."""


@dataclass(frozen=True)
class Compared:
    """One part of the model. findings: what is wrong, in sentences.

    tokens: that count for the errors. ours, plain: their distances from the exact result.
    flips: of the router, if there is one. kl, plain_kl: per token, of logits; same_top: tokens
    whose likeliest next token is the exact one's.
    """

    part: str
    tokens: int
    ours: Distance
    plain: Distance
    findings: Sequence[str]
    flips: Flips | None = None
    kl: Tensor | None = None
    plain_kl: Tensor | None = None
    same_top: int = 0


@dataclass
class Runner:
    """One model, its caches and what its routers did.

    The pages of the one sequence are out of order, and page 0 is nobody's.
    """

    model: Model
    watched: Watched
    counts: bool = False
    caches: list[KVCache] = field(default_factory=list)

    def start(self, tokens: int) -> None:
        """Empty caches for a sequence of so many tokens."""
        self._pages = list(range(-(-tokens // SLOTS), 0, -1))
        self.caches = self.model.allocate(len(self._pages) + 1, SLOTS)

    def step(self, begin: int, end: int) -> Step:
        return Step.build([(begin, end - begin, self._pages)], SLOTS, self.model.ops.device)

    def watching(self) -> AbstractContextManager[object]:
        return self.watched.watching() if self.counts else nullcontext()

    def routing(self) -> Routing | None:
        """The router's call since the last time."""
        found = self.watched.routings[:]
        self.watched.routings.clear()
        assert len(found) <= 1, f"{len(found)=}"
        return found[0] if found else None

    def layer(self, step: Step, i: int, x_TD: Tensor) -> Tensor:
        """What layer i adds to the stream x, (T, D) float64 on the host."""
        rotary = Rotary.at(step.positions_T, self.model.config, self.model.dtype)
        layer, x = self.model.layers[i], self._here(x_TD)
        out, residual = layer(x, None, rotary, self.caches[i], step)
        return out.cpu().double() + residual.cpu().double() - x_TD.double()

    def hidden(self, x_TD: Tensor) -> Tensor:
        eps = self.model.config.rms_norm_eps
        return self.model.ops.rms_norm(self._here(x_TD), self.model.norm, eps)[0]

    def logits(self, x_TD: Tensor) -> Tensor:
        """Of the stream after the last layer, on the host."""
        return self.model.logits(self.hidden(x_TD)).cpu()

    def mtp(self, step: Step, ids_T: Tensor, hidden_TD: Tensor) -> Tensor:
        """Hidden states of the MTP layer, on the host. ids_T: the tokens that follow."""
        assert self.model.mtp is not None
        ids = ids_T.to(self.model.ops.device)
        return self.model.mtp(ids, self._here(hidden_TD), step, self.caches[-1]).cpu()

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        """On the host."""
        return self.model.mtp_logits(self._here(hidden_TD)).cpu()

    def whole(self, ids_T: Tensor, begin: int, end: int) -> Tensor:
        """Logits of the model left to itself, on the host; its routers' calls are kept."""
        ids = ids_T[begin:end].to(self.model.ops.device)
        self.watched.routings.clear()
        hidden = self.model.forward(ids, self.step(begin, end), self.caches)
        return self.model.logits(hidden).cpu()

    def _here(self, x_TD: Tensor) -> Tensor:
        return x_TD.to(self.model.ops.device, self.model.dtype)


@dataclass
class _Seen:
    """Results of one part, each step's behind the other's: of ours, plain and exact."""

    results: list[Sequence[Tensor]] = field(default_factory=list)
    routings: list[Sequence[Routing]] = field(default_factory=list)


def compare(
    ours: Runner, plain: Runner, exact: Runner, ids: Sequence[int], decode: int, whole: bool = True
) -> Iterator[Compared]:
    """Every layer, the head and the MTP layer on the exact model's stream, then the whole model.

    ids: a prompt, of which all but the last are computed: the first in one step, the last `decode`
    of them one at a time. plain computes in the type of `ours`, exact in float64. whole: whether
    to run the models on their own too.
    """
    count = len(ids) - 1
    if not 0 <= decode < count:
        raise UsageError(f"{len(ids)} tokens are too few for a prefill and {decode} decode steps.")
    tokens = torch.tensor(list(ids))
    ends = [count - decode, *range(count - decode + 1, count + 1)]
    steps = list(zip([0, *ends], ends, strict=False))
    runners = (ours, plain, exact)
    with torch.inference_mode():
        parts: dict[str, _Seen] = {}
        for one in runners:
            one.start(count)
        for begin, end in steps:
            _teach(runners, tokens, begin, end, parts)
        layers = [*exact.model.layers, *([exact.model.mtp.layer] if exact.model.mtp else [])]
        moes = dict(zip(parts, [layer.moe for layer in layers], strict=False))
        for part, seen in parts.items():
            yield _judge(part, seen, moes.get(part), is_logits="head" in part)
        if whole:
            yield _whole(runners, tokens, steps)


def _teach(
    runners: Sequence[Runner], ids: Tensor, begin: int, end: int, parts: dict[str, _Seen]
) -> None:
    """One step through all parts, the exact model handing every model the same input."""
    exact, dtype = runners[-1], runners[0].model.dtype

    def run(part: str, what: Callable[[Runner, Step], Tensor]) -> Tensor:
        """All models' results of one part; returns the exact one."""
        results, seen = [], parts.setdefault(part, _Seen())
        for one in runners:
            with one.watching():
                results.append(what(one, one.step(begin, end)))
        seen.results.append(results)
        if routings := [r for one in runners if (r := one.routing())]:
            seen.routings.append(routings)
        return results[-1]

    x = F.embedding(ids[begin:end], exact.model.embed.cpu()).to(dtype)
    for i in range(len(exact.model.layers)):
        added = run(f"layer {i}", partial(Runner.layer, i=i, x_TD=x))
        x = (x.double() + added).to(dtype)
    if exact.model.mtp is not None:
        name, hidden = f"layer {len(exact.model.layers)} (MTP)", exact.hidden(x).to(dtype)
        following = ids[begin + 1 : end + 1]
        drafted = run(name, partial(Runner.mtp, ids_T=following, hidden_TD=hidden)).to(dtype)
        run("MTP head", lambda one, step: one.mtp_logits(drafted))
    run("head", lambda one, step: one.logits(x))


def _judge(part: str, seen: _Seen, moe: MoE | None, is_logits: bool) -> Compared:
    actual, plain, exact = (torch.cat(t) for t in zip(*seen.results, strict=True))
    counted = torch.ones(len(exact), dtype=torch.bool)
    found, found_flips = [], None
    if moe is not None:
        a, p, e = (_joined(r) for r in zip(*seen.routings, strict=True))
        found_flips = flips(a, p, e, moe)
        counted = ~(found_flips.flipped_T | flips(p, p, e, moe).flipped_T)
        if wrong := int(found_flips.unexplained_T.sum()):
            found.append(f"{part}: {wrong} of {len(exact)} tokens go to other experts unexplained")
    if not counted.any():
        found.append(f"{part}: no token is left to compare; take a longer prompt")
        counted[:] = True
    rows = [t[counted] for t in (actual, plain, exact)]
    found += [f"{part}: {fault}" for fault in faults(*rows)]
    ours_off, plain_off = distance(rows[0], rows[2]), distance(rows[1], rows[2])
    kl = (_kl(rows[0], rows[2]), _kl(rows[1], rows[2])) if is_logits else (None, None)
    same = int((rows[0].argmax(-1) == rows[2].argmax(-1)).sum()) if is_logits else 0
    return Compared(
        part, int(counted.sum()), ours_off, plain_off, found, found_flips, kl[0], kl[1], same
    )


def _whole(runners: Sequence[Runner], ids: Tensor, steps: Sequence[tuple[int, int]]) -> Compared:
    """Left to itself the model adds its errors up; the error, the slope and the mean KL are judged
    (which grows with the square of an error).

    Which tokens are re-routed is a matter of luck, here and in plain PyTorch, and hides both good
    and bad. So each is held against the exact model with the experts that it chose; whether these
    are right is for the layers to say.
    """
    ours_run, plain_run, exact_run = runners
    a, a_exact = _alone(ours_run, exact_run, ids, steps)
    p, p_exact = _alone(plain_run, exact_run, ids, steps)
    same = int((a.argmax(-1) == a_exact.argmax(-1)).sum())
    ours, plain = distance(a, a_exact), distance(p, p_exact)
    kl, plain_kl = _kl(a, a_exact), _kl(p, p_exact)
    found = []
    if not (ours.finite and ours.error <= K * plain.error + FLOOR):
        found.append(f"error {ours.error:.3g} exceeds {K:g} times plain PyTorch's")
    if not abs(ours.slope - 1) <= WHOLE_SLOPE:
        found.append(f"slope {ours.slope:.5f} is further than {WHOLE_SLOPE} from 1")
    if not kl.mean() <= K**2 * plain_kl.mean() + FLOOR:
        found.append(f"mean KL {kl.mean():.3g} exceeds {K**2:g} times plain PyTorch's")
    found = [f"whole model: {fault}" for fault in found]
    return Compared("whole model", len(a), ours, plain, found, None, kl, plain_kl, same)


def _alone(
    one: Runner, exact: Runner, ids: Tensor, steps: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Logits of a model left to itself, and the exact model's with the same experts."""
    logits, right = [], []
    for runner in (one, exact):
        runner.start(len(ids) - 1)
    for begin, end in steps:
        with one.watching():
            logits.append(one.whole(ids, begin, end))
        exact.watched.replayed = [routing.experts_TK for routing in one.watched.routings]
        one.watched.routings.clear()
        right.append(exact.whole(ids, begin, end))
        exact.watched.routings.clear()
    return torch.cat(logits), torch.cat(right)


def _joined(routings: Sequence[Routing]) -> Routing:
    return Routing(
        torch.cat([r.x_TD for r in routings]), torch.cat([r.experts_TK for r in routings])
    )


def _kl(logits_TV: Tensor, exact_TV: Tensor) -> Tensor:
    """(T,) Kullback-Leibler divergence of the next token's distribution from the exact one."""
    q, p = logits_TV.double().log_softmax(-1), exact_TV.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)
