"""The examination of a server: find out what it serves, then one check after the other."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.verify.endpoint import (
    determinism,
    load,
    logprobs,
    prompts,
    protocol,
    text,
    thinking,
    tools,
    window,
)
from glm_portable.verify.endpoint.chat import Question, ask
from glm_portable.verify.endpoint.client import MODELS, Broken, Client, Refused
from glm_portable.verify.endpoint.conversations import user
from glm_portable.verify.endpoint.exam import Exam, Item, Settings, judge
from glm_portable.verify.endpoint.reference import Reference, published
from glm_portable.verify.results import Check

ITEMS = (
    Item("prompt", "prompt", "tokens of known conversations", prompts.conversations),
    Item("prompt", "prompt", "tokens of the thinking switch", prompts.thinking_switch),
    Item("prompt", "prompt", "a longer system prompt", prompts.system_prompt),
    Item("thinking", "thinking", "on", thinking.on),
    Item("thinking", "thinking", "off", thinking.off),
    Item("thinking", "thinking", "cut off", thinking.cut_off),
    Item("tools", "tool calls", "complete and typed", tools.shape),
    Item("tools", "tool calls", "streamed as unstreamed", tools.streamed),
    Item("tools", "tool calls", "as the model wrote them", tools.as_written),
    Item("tools", "tool calls", "tool_choice", tools.choice),
    Item("protocol", "answer", "streamed as unstreamed", protocol.streamed),
    Item("protocol", "answer", "usage", protocol.usage),
    Item("protocol", "answer", "max_tokens", protocol.limits),
    Item("protocol", "answer", "stop strings", protocol.stop_strings),
    Item("protocol", "errors", "nonsense is refused", protocol.nonsense),
    Item("logprobs", "numbers", "log probabilities", logprobs.compare),
    Item("length", "numbers", "length of answers", text.length),
    Item("determinism", "determinism", "repeated", determinism.repeated),
    Item("determinism", "determinism", "beside other requests", determinism.beside_others),
    Item("load", "accuracy", "alone and under load", load.accuracy),
    Item("window", "long prompts", "near the window", window.near),
    Item("window", "long prompts", "a fact found", window.needle),
    Item("window", "long prompts", "beyond the window", window.beyond),
    # The last: it looks at every answer so far.
    Item("repetition", "text", "repetition", text.repetition),
)
GROUPS = tuple(dict.fromkeys(item.group for item in ITEMS))

NEED_ANSWERS = {"tools", "logprobs", "length", "repetition"}


def prepare(
    client: Client,
    *,
    model: str | None = None,
    reference: str | None = None,
    only: Sequence[str] = GROUPS,
    settings: Settings | None = None,
) -> Exam:
    """Find out what the server serves, and what to compare it with.

    model: what requests call it, the first it lists if None. reference: see `find_reference`.
    only: of GROUPS. Raises UsageError if there is no such server, or no such reference.
    """
    unknown = sorted(set(only) - set(GROUPS))
    if unknown:
        raise UsageError(f"{unknown[0]!r} is no group of checks; use {', '.join(GROUPS)}.")
    name, size = find_model(client, model)
    settings = settings or Settings()
    answers = bool(NEED_ANSWERS & set(only))
    compared = find_reference(reference, name, answers=answers, every=settings.every)
    return Exam(client, name, size, compared, settings)


def examine(exam: Exam, only: Sequence[str] = GROUPS) -> Iterator[Check]:
    """Run the checks of the named groups, in order."""
    return (judge(item, exam) for item in ITEMS if item.group in only)


def find_model(client: Client, wanted: str | None) -> tuple[str, int | None]:
    """(name, window) of the served model, which has answered once. Raises UsageError."""
    card = _card(client, wanted)
    name = wanted or str(card["id"])
    length = card.get("max_model_len", card.get("context_length"))
    try:
        ask(client, name, Question("first", [user("Hello")], max_tokens=1))
    except Refused as refused:
        advice = "give --api-key" if refused.status in (401, 403) else "check --model"
        raise UsageError(
            f"{client.url} does not answer a plain chat with {name}: {refused}; {advice}."
        ) from None
    except Broken as broken:
        raise UsageError(
            f"{client.url} lists models, but {broken}: it is not ready, or no chat server."
        ) from None
    return name, length if isinstance(length, int) else None


def _card(client: Client, wanted: str | None) -> Mapping[str, Any]:
    """The model's entry in the list; empty if the list has none and the name is known anyway."""
    try:
        listed = client.get(MODELS).get("data")
    except Refused as refused:
        if wanted is not None and refused.status not in (401, 403):
            return {}
        advice = "give --api-key" if refused.status in (401, 403) else "name one with --model"
        raise UsageError(f"{client.url} does not list its models ({refused}): {advice}.") from None
    except Broken as broken:
        raise UsageError(
            f"{client.url} is no server of the OpenAI API: {broken}; check the address."
        ) from None
    cards = [c for c in listed if isinstance(c, dict)] if isinstance(listed, list) else []
    named = [card for card in cards if card.get("id") == wanted]
    if wanted is not None:
        return named[0] if named else {}
    if not cards or not isinstance(cards[0].get("id"), str):
        raise UsageError(f"{client.url} lists no model: name one with --model.")
    return cards[0]


def find_reference(
    wanted: str | None, served: str, *, answers: bool, every: int = 1
) -> Reference | None:
    """What to compare with; None if nothing is known of the served model.

    wanted: a file of endpoint-reference, a checkpoint's folder, "pocket", or the name of a
    published model; if None, the name that the server gives. answers: whether the pocket model is
    to be computed here, which takes seconds; its prompt counts do not. every: of its questions.
    """
    from glm_portable.verify.endpoint import making  # torch takes seconds to import

    name = wanted or served
    if wanted is not None and Path(wanted).is_file():
        return Reference.read(Path(wanted))
    if wanted is not None and Path(wanted).is_dir():
        return making.counts_of(wanted)
    if name.split("/")[-1] in ("pocket", "glm-pocket"):
        return making.make_pocket(every) if answers else making.counts_of(None)
    known = published(name)
    if known is None and wanted is not None:
        raise UsageError(
            f"--reference {wanted!r} is no file, no folder and no published model; name one of "
            "them, such as glm-4.5, glm-4.6 or glm-4.7."
        )
    return known


def about(exam: Exam) -> dict[str, str]:
    """What was examined, and what it was compared with."""
    found = {
        "server": exam.client.url,
        "model": exam.model,
        "window": str(exam.window or "not told"),
        "compared with": exam.reference.name if exam.reference else prompts.NO_REFERENCE,
    }
    return found | dict(exam.reference.about if exam.reference else {})
