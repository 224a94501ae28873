"""The model left to itself: its own experts, and its own tokens."""

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_portable.verify.against import (
    check,
    diverged,
    divergences,
    kl_findings,
    kl_measures,
)
from glm_portable.verify.golden.record import Golden
from glm_portable.verify.layers import Runner
from glm_portable.verify.metrics import K
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject
from glm_portable.verify.walk import prefill, walk

PROMPT, ANSWER = 24, 16
TOP = 16
"""Tokens of each row whose logprobs tell plain PyTorch's error."""


def free(ours: Runner, golden: Golden) -> Iterator[Check]:
    """The golden file's prompts with experts of the model's own choice.

    Some tokens go to other experts, here and in plain PyTorch, so single ones are no measure.
    """
    walked = walk(ours, golden.prompts, prefill(golden.prompts), counted=False)
    logits, kl = divergences(ours.model, golden, walked)
    plain = golden.tensors["kl.free"].double()
    measures = kl_measures(kl, plain)
    found = kl_findings(kl, plain, single=False)
    found += diverged(golden, logits, golden.noise["free"], measures)
    series = {"kl": kl.tolist(), "plain_kl": plain.tolist()}
    yield check("whole model", "logits, own experts", found, measures, series)


def greedy(ours: Runner, references: tuple[Runner, Runner], subject: Subject) -> Iterator[Check]:
    """An answer of the backend's own, of which the reference says what it would have taken."""
    prompt = subject.prompt(PROMPT)
    with torch.inference_mode():
        ids = answer(ours, prompt, ANSWER)
        plain, exact = (_logprobs(one, ids) for one in references)
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


def _logprobs(runner: Runner, ids: list[int]) -> Tensor:
    """(len(ids) - 1, V) float64, in one step."""
    runner.start(len(ids))
    return runner.whole(torch.tensor(ids), 0, len(ids) - 1).double().log_softmax(-1)
