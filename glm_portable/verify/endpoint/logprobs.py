"""Log probabilities against the reference's: the check that sees wrong numbers behind good text."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from glm_portable.verify.endpoint.client import COMPLETIONS, Broken, Refused
from glm_portable.verify.endpoint.distance import QUANTILES, Spread
from glm_portable.verify.endpoint.exam import Exam, Notes, Skipped
from glm_portable.verify.endpoint.reference import Position, Recorded

FLOOR = 1e-6
"""Nats that are always allowed: float32 sums in another order, and digits cut off in JSON."""
ALLOWED_MEAN = 0.02
"""Nats, of a reference without yardstick. llama.cpp measured .0002 for Q8_0 and .05 for Q3_K_M."""
MEAN_TOLERANCE, LEAST_SAME_TOP = 10.0, 0.9
COVERED = 0.5
"""Of the reference's probability; below, tokens are named differently and nothing is compared."""
_BATCH = 16
_REACH = 192
"""Tokens of a prompt that is sent again for every position."""

Pair = tuple[Mapping[str, float], Mapping[str, float]]
_WHY = (
    "the served numbers are another model's: a router bias rounded to BF16 (sglang PR#37133), a "
    "scale lost (vllm PR#34863) or a quantisation harsher than the reference's"
)


def compare(exam: Exam, notes: Notes) -> None:
    """The divergence from the reference's distributions is at most a few times plain BF16's."""
    if exam.reference is None or not exam.reference.recorded:
        raise Skipped(
            "no log probabilities to compare with: make them from the model's weights with "
            "glm-portable verify endpoint-reference, and give the file with --reference"
        )
    how, pairs = _distributions(exam, exam.reference.recorded)
    spread = Spread.of(pairs)
    notes.remarks.append(f"{len(spread.divergences)} positions by {how}")
    if spread.covered < COVERED:
        raise Skipped(
            f"by {how} the server names tokens that hold only {spread.covered:.0%} of the "
            "reference's probability: its names for tokens are others"
        )
    notes.measures |= spread.measures
    notes.series["kl"] = list(spread.divergences)
    _judge(notes, spread, exam.reference.plain, exam.settings.tolerance)


def _judge(notes: Notes, spread: Spread, plain: Mapping[str, float], tolerance: float) -> None:
    found = spread.measures
    sent = f"{len(spread.divergences)} positions of known answers and prompts"
    allowed = {f"kl_{share:.0%}": tolerance for share in QUANTILES} | {"kl_mean": MEAN_TOLERANCE}
    if plain:
        limits = {name: times * plain[name] + FLOOR for name, times in allowed.items()}
        least = plain["same_top"] - (1 - LEAST_SAME_TOP)
    else:
        limits, least = {"kl_mean": ALLOWED_MEAN}, LEAST_SAME_TOP
        notes.remarks.append("the reference has no yardstick: only gross differences fail")
    nearest = max(limits, key=lambda name: found[name] / limits[name])
    notes.measures |= {"error": found[nearest], "allowed": limits[nearest]}
    for name, limit in limits.items():
        if found[name] > limit:
            measured = f"{name} {found[name]:.3g} nats, over {limit:.3g}"
            notes.fail(sent, measured, _WHY)
    if spread.same_top < least:
        notes.fail(sent, f"the same likeliest token at {spread.same_top:.0%}", _WHY)


def _distributions(exam: Exam, recorded: Sequence[Recorded]) -> tuple[str, list[Pair]]:
    """How the server was asked, and (reference, server) at every position it told about."""
    for how, ask in (
        ("prompt_logprobs", _prompt_logprobs),
        ("echo", _echo),
        ("one token after each prefix", _prefixes),
    ):
        try:
            found = ask(exam, recorded)
        except Refused:
            continue
        if found:
            return f"{how} of /v1/completions", found
    pairs = list(_chat(exam, recorded))
    if not pairs:
        raise Skipped("the server sends no log probabilities, on neither endpoint")
    return "greedy chat, up to where the answers part", pairs


def _completion(exam: Exam, prompt: Any, **extra: Any) -> list[dict[str, Any]]:
    body = {"model": exam.model, "prompt": prompt, "max_tokens": 1, "temperature": 1, **extra}
    choices = exam.client.post(COMPLETIONS, body).get("choices")
    if not isinstance(choices, list) or not all(isinstance(c, dict) for c in choices):
        raise Broken(f"{COMPLETIONS} answered 200 without choices")
    return choices


def _prompt_logprobs(exam: Exam, recorded: Sequence[Recorded]) -> list[Pair]:
    """vLLM's: for every token of the prompt, log probabilities by token id."""
    pairs: list[Pair] = []
    for record in recorded:
        [choice] = _completion(exam, list(record.ids), prompt_logprobs=20)
        rows = choice.get("prompt_logprobs")
        if not isinstance(rows, list) or len(rows) != len(record.ids):
            return []
        for position in record.positions:
            row = rows[position.index] or {}
            pairs.append((position.by_id, {t: float(e["logprob"]) for t, e in row.items()}))
    return pairs


def _echo(exam: Exam, recorded: Sequence[Recorded]) -> list[Pair]:
    """OpenAI's old way: the prompt comes back with log probabilities by token text."""
    pairs: list[Pair] = []
    for record in recorded:
        [choice] = _completion(exam, list(record.ids), echo=True, logprobs=20)
        rows = (choice.get("logprobs") or {}).get("top_logprobs")
        if not isinstance(rows, list) or len(rows) < len(record.ids):
            return []
        pairs += [(p.by_text, rows[p.index] or {}) for p in record.positions]
    return pairs


def _prefixes(exam: Exam, recorded: Sequence[Recorded]) -> list[Pair]:
    """One generated token after each prefix tells as much, several prefixes in a request."""
    wanted = [
        (position, list(record.ids[: position.index]))
        for record in recorded
        for position in record.positions
        if position.index <= _REACH
    ]
    pairs: list[Pair] = []
    for start in range(0, len(wanted), _BATCH):
        batch = wanted[start : start + _BATCH]
        choices = _completion(exam, [ids for _, ids in batch], logprobs=20)
        if len(choices) != len(batch):
            return []  # it does not take several prompts
        ordered = sorted(choices, key=lambda choice: choice.get("index", 0))
        for (position, _), choice in zip(batch, ordered, strict=True):
            rows = (choice.get("logprobs") or {}).get("top_logprobs")
            if not rows:
                return []
            pairs.append((position.by_text, rows[0]))
    return pairs


def _chat(exam: Exam, recorded: Sequence[Recorded]) -> Iterator[Pair]:
    for record in recorded:
        said = exam.ask(record.question, logprobs=True, top_logprobs=20)
        by_index: dict[int, Position] = {
            position.index - len(record.prompt_ids): position for position in record.positions
        }
        for index, (token, piece) in enumerate(zip(said.tokens, record.pieces, strict=False)):
            if index in by_index and token.top:
                yield by_index[index].by_text, token.top
            if token.text != piece:
                break
