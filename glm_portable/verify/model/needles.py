"""Long prompts: whether errors grow along them, and whether what was said first is still found."""

from collections.abc import Iterator

import torch
from torch import Tensor

from glm_portable.errors import UsageError
from glm_portable.serve.chat import ChatTemplate
from glm_portable.tasks import generate
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.golden.fingerprint import project
from glm_portable.verify.golden.record import HIDDEN
from glm_portable.verify.metrics import FLOOR, K, distance, judge
from glm_portable.verify.model.against import check, numbers
from glm_portable.verify.model.layers import WHOLE_SLOPE, Runner
from glm_portable.verify.model.walk import Path, Piece, Walked, pages_of, walk
from glm_portable.verify.results import Check
from glm_portable.verify.subject import Subject

CHUNK = 512
"""Tokens of a step: what the scores of attention take grows with it."""
STRETCHES = 8
"""Of the prompt, each judged by itself: a fault far behind drowns in what is right before."""
FACT = [
    {"role": "user", "content": "Remember: my locker code is 4821."},
    {"role": "assistant", "content": "OK, I will remember that."},
]
QUESTION, ANSWER = "What is my locker code?", "Your locker code is 4821."


def needle(
    ours: Runner, references: tuple[Runner, Runner], subject: Subject, length: int
) -> Iterator[Check]:
    """A prompt of about so many tokens, whose answer is in its first sentence."""
    ids, answer = prompt(subject, length)
    sequences = [ids]
    path = _path(ids)
    plain_run, exact_run = references
    exact = walk(exact_run, sequences, path)
    experts = [routing.experts_TK for routing in exact.routings]
    plain, found = (walk(run, sequences, path, experts) for run in (plain_run, ours))
    rows = [project(one.hidden_TD, HIDDEN) for one in (found, plain, exact)]
    yield _stretches(rows, len(ids) - 1)
    if answer:
        yield _answer([ours, plain_run, exact_run], [found, plain, exact], ids, answer)


def prompt(subject: Subject, length: int) -> tuple[list[int], int]:
    """The tokens, and how many of them, at the end, are the answer. Random models have none."""
    window = subject.config.max_position_embeddings
    if not CHUNK // 4 <= length <= window:
        raise UsageError(
            f"a prompt of {length} tokens cannot be judged: take {CHUNK // 4} to {window}, the "
            f"window of {subject.name}."
        )
    if not (subject.folder / "tokenizer.json").exists():
        return subject.prompt(length), 0
    tokenizer = Tokenizer.load(subject.folder, subject.config)
    template = ChatTemplate.load(subject.folder, tokenizer)
    if template.missing:
        return subject.prompt(length), 0
    end = {"role": "user", "content": QUESTION}
    talk = list(FACT)
    encoded = template.encode([*talk, end], chat_template_kwargs={"enable_thinking": False})
    answer, index = tokenizer.encode(ANSWER), 0
    while True:
        more = [*talk, *generate(subject.seed, index, family="chat", thinking=False).messages]
        longer = template.encode([*more, end], chat_template_kwargs={"enable_thinking": False})
        if len(longer.token_ids) + len(answer) > length:
            return [*encoded.token_ids, *answer], len(answer)
        talk, encoded, index = more, longer, index + 1


def _path(ids: list[int]) -> Path:
    pages = pages_of([ids])[0]
    count = len(ids) - 1
    return [[Piece(0, begin, min(count, begin + CHUNK), pages)] for begin in range(0, count, CHUNK)]


def _stretches(rows: list[Tensor], count: int) -> Check:
    """The last hidden states, stretch by stretch; rows: projected, of ours, plain and exact."""
    ours, plain = distance(rows[0], rows[2]), distance(rows[1], rows[2])
    found = judge(ours, plain, WHOLE_SLOPE)
    errors, allowed, begin = [], [], 0
    for a, p, e in zip(*(r.tensor_split(STRETCHES) for r in rows), strict=True):
        errors.append(distance(a, e).error)
        allowed.append(K * distance(p, e).error + FLOOR)
        if not errors[-1] <= allowed[-1]:
            found.append(
                f"error {errors[-1]:.3g} from token {begin} to {begin + len(e) - 1} exceeds "
                f"{allowed[-1]:.3g} ({K:g} times plain PyTorch's)"
            )
        begin += len(e)
    series = {"error": errors, "allowed": allowed}
    return check("long prompt", f"{count} tokens", found, numbers(ours, plain), series)


def _answer(runners: list[Runner], walks: list[Walked], ids: list[int], answer: int) -> Check:
    """Whether the tokens of the right answer are the likeliest, where the reference's are."""
    wanted = torch.tensor(ids[-answer:])
    logprobs = []
    for runner, walked in zip(runners, walks, strict=True):
        rows = walked.hidden_TD[-answer:].to(runner.model.ops.device)
        with torch.inference_mode():
            logprobs.append(runner.model.logits(rows).cpu().double().log_softmax(-1))
    ours, plain, exact = (lp.gather(1, wanted.unsqueeze(1)).squeeze(1) for lp in logprobs)
    found_T, exact_T = (lp.argmax(-1) == wanted for lp in (logprobs[0], logprobs[2]))
    noise = (plain - exact).abs().max().item()
    best = logprobs[2].topk(2, dim=-1).values
    lost = exact_T & ~found_T & (best[:, 0] - best[:, 1] > 2 * K * noise)
    found = []
    if lost.any():
        found.append(
            f"{int(lost.sum())} of {answer} tokens of the answer are lost, which the reference "
            "finds by a margin that rounding does not explain"
        )
    measures = {
        "found": found_T.double().mean().item(),
        "reference_found": exact_T.double().mean().item(),
        "logprob": ours.sum().item(),
        "reference_logprob": exact.sum().item(),
    }
    return check("needle", f"{len(ids)} tokens", found, measures)
