"""The model left to itself: its own experts, and its own tokens."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from glm_portable.verify.golden.record import Golden
from glm_portable.verify.metrics import FLOOR, K
from glm_portable.verify.model.against import (
    check,
    diverged,
    divergences,
    experts_of,
    kl_measures,
)
from glm_portable.verify.model.layers import Runner
from glm_portable.verify.model.walk import Path, Piece, Walked, pages_of, prefill, walk
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject

PROMPT, ANSWER = 24, 16
TOP = 16
"""Tokens of each row whose logprobs tell plain PyTorch's error."""


def free(ours: Runner, golden: Golden) -> Iterator[Check]:
    """The golden file's prompts with experts of the model's own choice.

    Which tokens go to other experts, here and in plain PyTorch, is a matter of luck, and their KL
    is then large: they are counted and left out, and of the others the median is judged.
    """
    walked = walk(ours, golden.prompts, prefill(golden.prompts), counted=False)
    logits, kl = divergences(ours.model, golden, walked)
    plain = golden.tensors["kl.free"].double()
    same = ~_flipped(ours, golden, walked)
    measures = kl_measures(kl, plain) | {"flipped_tokens": float((~same).sum())}
    found = []
    settled = plain[golden.tensors["rerouted"] == 0]
    medians = [x.median().item() for x in (settled, golden.tensors["kl.plain"]) if len(x)]
    limit = K**2 * max(medians) + FLOOR
    if same.any() and not kl[same].median() <= limit:
        found.append(
            f"median KL {kl[same].median():.3g} exceeds {limit:.3g}, what is allowed by plain "
            "PyTorch's"
        )
    noise = max(golden.noise["free"], golden.noise["logits"])
    found += diverged(golden, logits, noise, measures, same)
    series = {"kl": kl.tolist(), "plain_kl": plain.tolist()}
    note = "medians are judged: which tokens are re-routed is a matter of luck"
    yield check("whole model", "logits, own experts", found, measures, series, note)


def _flipped(ours: Runner, golden: Golden, walked: Walked) -> Tensor:
    """(T,) whether a router of the main layers chose other experts than the exact one."""
    experts = experts_of(golden, ours.model.config.num_hidden_layers - 1)
    flipped = torch.zeros(len(walked.rows), dtype=torch.bool)
    for routing, exact in zip(walked.routings, experts, strict=False):
        flipped |= (routing.experts_TK.sort(-1).values != exact.sort(-1).values).any(-1)
    return flipped


def greedy(ours: Runner, references: tuple[Runner, Runner], subject: Subject) -> Iterator[Check]:
    """An answer of the backend's own, of which the reference says what it would have taken.

    With the experts that the backend chose: where it was wrong in that, the routers' checks say so.
    """
    prompt = subject.prompt(PROMPT)
    with torch.inference_mode():
        ids = answer(ours, prompt, ANSWER)
    pages = pages_of([ids])[0]
    ends = [0, *range(len(prompt), len(ids))]
    path = [[Piece(0, a, b, pages)] for a, b in zip(ends, ends[1:], strict=False)]
    experts = [routing.experts_TK for routing in walk(ours, [ids], path, counted=False).routings]
    plain, exact = (_logprobs(one, ids, path, experts) for one in references)
    top = exact.topk(min(TOP, exact.shape[1]), dim=-1).indices
    noise = (plain.gather(1, top) - exact.gather(1, top)).abs().max().item()
    rows, chosen = slice(len(prompt) - 1, None), torch.tensor(ids[len(prompt) :])
    behind = exact[rows].max(-1).values - exact[rows].gather(1, chosen.unsqueeze(1)).squeeze(1)
    others = (behind > 0).nonzero().flatten().tolist()
    found = [
        f"token {len(prompt) + i} of the answer is {behind[i].item():.3g} in logprob behind the "
        f"reference's, and rounding explains {2 * K * noise:.3g}"
        for i in others
        if not behind[i] <= 2 * K * noise
    ]
    measures = {"diverged": float(len(others)), "diverged_margin": behind.max().item()}
    first = f"first at token {len(prompt) + others[0]}" if others else "none"
    note = f"{len(chosen)} tokens, likeliest ones that are not the reference's: {first}"
    series = {"margin": behind.tolist()}
    yield check("greedy", f"{len(chosen)} tokens", found, measures, series, note)


def answer(runner: Runner, prompt: list[int], count: int) -> list[int]:
    """Prompt and `count` likeliest tokens, one step each."""
    ids = list(prompt)
    runner.start(len(prompt) + count)
    begin = 0
    with runner.watching():
        for _ in range(count):
            logits = runner.whole(torch.tensor(ids), begin, len(ids))
            begin = len(ids)
            ids.append(int(logits[-1].argmax()))
    return ids


def _logprobs(runner: Runner, ids: list[int], path: Path, experts: Sequence[Tensor]) -> Tensor:
    """(len(ids) - 1, V) float64."""
    hidden = walk(runner, [ids], path, experts).hidden_TD
    with torch.inference_mode():
        return runner.model.logits(hidden).double().log_softmax(-1)
