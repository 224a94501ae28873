"""A walk through a golden file's prompts, judged part by part.

The routers are made to choose the golden file's experts where they would not (and what they would
have chosen is judged by itself), so a flip does not change all that follows: every layer's part of
the residual stream can be held against plain PyTorch's error at the same place.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from glm_portable.model import Model
from glm_portable.verify.golden.fingerprint import project
from glm_portable.verify.golden.head import Summary, kl, summarise
from glm_portable.verify.golden.record import HIDDEN, Golden
from glm_portable.verify.metrics import FLOOR, K_TAIL, Distance, K, distance, judge
from glm_portable.verify.model.layers import WHOLE_SLOPE, Runner
from glm_portable.verify.model.walk import Path, Walked, cached, walk
from glm_portable.verify.results import Check, Status
from glm_portable.verify.routing import Flips, flips_by

ROWS = 64
"""Of logits at a time: those of a large vocabulary are large."""


def check(
    subject: str,
    name: str,
    findings: Sequence[str],
    measures: Mapping[str, float],
    series: Mapping[str, Sequence[float]] | None = None,
    note: str = "",
) -> Check:
    """A verdict; each finding says first what it is about."""
    status = Status.FAIL if findings else Status.PASS
    said = tuple(f"{subject}: {finding}" for finding in findings)
    return Check("model", subject, name, status, said, measures, series or {}, note=note)


def experts_of(golden: Golden, layers: int) -> list[Tensor]:
    """What each router chose, the MTP layer's last."""
    names = [f"experts.{i}" for i in range(layers + 1)]
    return [golden.tensors[name].int() for name in names if name in golden.tensors]


def forced(runner: Runner, golden: Golden, path: Path, counted: bool = True) -> Walked:
    """Along a path, with the golden file's experts; counted: as in `walk`."""
    experts = experts_of(golden, runner.model.config.num_hidden_layers)
    return walk(runner, golden.prompts, path, experts, counted)


def judged(runner: Runner, golden: Golden, walked: Walked, path: Path) -> Iterator[Check]:
    """Every layer's cache, router and part of the stream, then the head and the MTP layer."""
    model = runner.model
    found_flips = _flips(model, golden, walked)
    for i in range(len(model.layers)):
        yield _cache(golden, walked, i, path, f"layer {i}")
        yield _layer(golden, walked, i, found_flips.get(i))
    yield _hidden(golden, walked.hidden_TD, "", "final norm")
    yield _logits(model, golden, walked)
    if model.mtp is not None and walked.mtp_TD is not None and "mtp.hidden" in golden.tensors:
        last = len(model.layers)
        yield _cache(golden, walked, last, path, f"layer {last} (MTP)")
        yield _hidden(golden, walked.mtp_TD, "mtp.", f"layer {last} (MTP)", found_flips.get(last))


def numbers(ours: Distance, plain: Distance) -> dict[str, float]:
    return {
        "error": ours.error,
        "allowed": K * plain.error + FLOOR,
        "slope": ours.slope,
        "tail": ours.tail,
    }


def _flips(model: Model, golden: Golden, walked: Walked) -> dict[int, Flips]:
    """By layer, of what its router would have chosen."""
    layers = [*model.layers, *([model.mtp.layer] if model.mtp else [])]
    routed = [(i, layer.moe) for i, layer in enumerate(layers) if layer.moe is not None]
    found = {}
    for (i, moe), routing in zip(routed, walked.routings, strict=False):
        if moe is None or f"experts.{i}" not in golden.tensors:
            continue
        experts, margin = golden.tensors[f"experts.{i}"], golden.tensors[f"margin.{i}"].double()
        found[i] = flips_by(routing, experts, margin, golden.noise[f"layer {i}"], moe)
    return found


def _layer(golden: Golden, walked: Walked, i: int, flips: Flips | None) -> Check:
    """What layer i added to the stream."""
    entered, left = (golden.tensors[f"stream.{j}"].double() for j in (i, i + 1))
    ours = distance(walked.streams[i + 1] - walked.streams[i], left - entered)
    plain = golden.plain[f"layer {i}"]
    found = judge(ours, plain, WHOLE_SLOPE)
    rms = walked.rms[i + 1] / golden.tensors[f"rms.{i + 1}"].double()
    measures = numbers(ours, plain) | {"rms": rms.mean().item()}
    found += _flipped(flips, measures)
    return check(f"layer {i}", "stream, teacher-forced", found, measures)


def _flipped(flips: Flips | None, measures: dict[str, float]) -> list[str]:
    if flips is None:
        return []
    flipped, wrong = (int(t.sum()) for t in (flips.flipped_T, flips.unexplained_T))
    measures |= {"flips_explained": flipped - wrong, "flips_unexplained": wrong}
    count = len(flips.flipped_T)
    return [f"{wrong} of {count} tokens go to other experts unexplained"] if wrong else []


def _cache(golden: Golden, walked: Walked, i: int, path: Path, subject: str) -> Check:
    sides = cached(walked, i, golden.prompts, path)
    found: list[str] = []
    worst: dict[str, float] = {}
    for name, ours in zip(("keys", "values"), sides, strict=True):
        off = distance(ours, golden.tensors[f"{name}.{i}"].double())
        plain = golden.plain[f"{name} {i}"]
        found += [f"cached {name}: {fault}" for fault in judge(off, plain, WHOLE_SLOPE)]
        here = numbers(off, plain)
        if not worst or here["error"] / here["allowed"] > worst["error"] / worst["allowed"]:
            worst = here
    if stray := _stray(walked, i, path):
        found.append(f"{stray} pages that no sequence owns were written to")
    return check(subject, "KV pages", found, worst)


def _stray(walked: Walked, i: int, path: Path) -> int:
    owned = {page for step in path for piece in step for page in piece.pages}
    cache = walked.caches[i]
    others = [page for page in range(len(cache.k_PSGC)) if page not in owned]
    return sum(
        bool(pages.view(torch.uint8).any())
        for side in (cache.k_PSGC, cache.v_PSGC)
        for pages in side[others].cpu()
    )


def _hidden(
    golden: Golden, hidden_TD: Tensor, prefix: str, subject: str, flips: Flips | None = None
) -> Check:
    ours = distance(project(hidden_TD, HIDDEN), golden.tensors[f"{prefix}hidden"].double())
    plain = golden.plain[f"{prefix}hidden"]
    measures = numbers(ours, plain)
    found = judge(ours, plain, WHOLE_SLOPE) + _flipped(flips, measures)
    return check(subject, "hidden states, teacher-forced", found, measures)


def summary(
    model: Model, hidden_TD: Tensor, wanted: Tensor | None = None, mtp: bool = False
) -> Summary:
    """Of a model's logits, some rows at a time."""
    head = model.mtp_logits if mtp else model.logits
    parts = []
    with torch.inference_mode():
        for begin in range(0, len(hidden_TD), ROWS):
            rows = slice(begin, begin + ROWS)
            logits = head(hidden_TD[rows].to(model.ops.device))
            ids = None if wanted is None else wanted[rows].long()
            parts.append(summarise([(0, logits)], logits.shape[1], ids))
    return Summary(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(Summary)))


def divergences(model: Model, golden: Golden, walked: Walked) -> tuple[Summary, Tensor]:
    """Our logprobs of the golden file's likeliest tokens, and (T,) the KL divergence."""
    ours = summary(model, walked.hidden_TD, golden.tensors["top.ids"])
    return ours, kl(ours, golden.tensors["top.logprobs"], golden.tensors["tail"])


def _logits(model: Model, golden: Golden, walked: Walked) -> Check:
    """With the golden file's experts: each token counts."""
    ours, found_kl = divergences(model, golden, walked)
    off, plain = (
        distance(ours.projected_TW, golden.tensors["logits"].double()),
        golden.plain["logits"],
    )
    found = judge(off, plain, WHOLE_SLOPE)
    plain_kl = golden.tensors["kl.plain"].double()
    found += kl_findings(found_kl, plain_kl)
    measures = numbers(off, plain) | kl_measures(found_kl, plain_kl)
    found += diverged(golden, ours, golden.noise["logits"], measures)
    series = {"kl": found_kl.tolist(), "plain_kl": plain_kl.tolist()}
    return check("head", "logits, teacher-forced", found, measures, series)


def kl_findings(ours: Tensor, plain: Tensor) -> list[str]:
    """KL grows with the square of an error."""
    limits = [
        ("mean", ours.mean(), K**2 * plain.mean() + FLOOR),
        ("largest", ours.max(), K_TAIL**2 * plain.max() + 10 * FLOOR),
    ]
    return [
        f"{name} KL {value:.3g} exceeds {limit:.3g}, what is allowed by plain PyTorch's"
        for name, value, limit in limits
        if not value <= limit
    ]


def kl_measures(ours: Tensor, plain: Tensor) -> dict[str, float]:
    return {
        "kl_mean": ours.mean().item(),
        "kl_p999": ours.quantile(0.999).item(),
        "kl_max": ours.max().item(),
        "plain_kl_mean": plain.mean().item(),
        "plain_kl_max": plain.max().item(),
    }


def diverged(
    golden: Golden,
    ours: Summary,
    noise: float,
    measures: dict[str, float],
    counted: Tensor | None = None,
) -> list[str]:
    """Where greedy decoding would go on otherwise; noise: plain PyTorch's error in logprobs.

    Two tokens may change places when what lies between them is less than both their errors.
    counted: (T,) the rows that are judged.
    """
    ids, logprobs = golden.tensors["top.ids"], golden.tensors["top.logprobs"].double()
    other = ours.best_T != ids[:, 0]
    hit = ids == ours.best_T.unsqueeze(1)
    theirs = torch.where(hit.any(-1), (logprobs * hit).sum(-1), logprobs[:, -1])
    behind = (logprobs[:, 0] - theirs) * other
    far = behind > 2 * K * noise
    wrong = int((far if counted is None else far & counted).sum())
    measures |= {
        "same_top": 1 - other.double().mean().item(),
        "diverged_margin": behind.max().item(),
        "diverged_unexplained": wrong,
    }
    if not wrong:
        return []
    worst = behind.max().item()
    return [
        f"{wrong} of {len(other)} likeliest tokens are others, up to {worst:.3g} behind in "
        f"logprob, and rounding explains {2 * K * noise:.3g}"
    ]
