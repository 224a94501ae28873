"""Making a reference from a model: its prompt counts, greedy answers and their distributions."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from glm_portable import hub, pocket
from glm_portable.config import ModelConfig
from glm_portable.glm import GLM
from glm_portable.glm import Answer as Generated
from glm_portable.serve.chat import ChatTemplate, tool_call_format
from glm_portable.tokenizer import Tokenizer
from glm_portable.verify.endpoint.chat import Call, Question, Said
from glm_portable.verify.endpoint.conversations import COUNTED, probes
from glm_portable.verify.endpoint.distance import Spread
from glm_portable.verify.endpoint.reference import Position, Recorded, Reference

TOP = 20
"""Likeliest tokens that are stored, the most that servers give."""
IN_PROMPT, IN_ANSWER = 9, 3
"""Tokens of a prompt and of its answer that are compared. A trained model is sure of most of its
answer, where errors do not show; what users write is open."""
FIRST, REACH = 8, 128
"""The prompt's tokens that are compared: after the template's own, and cheap to ask for."""


def counts_of(model: str | None) -> Reference:
    """The prompt counts of a checkpoint folder (None: the pocket model), without its weights."""
    folder = pocket.FOLDER if model is None else hub.resolve(model)
    tokenizer = Tokenizer.load(folder, ModelConfig.load(folder))
    chat = ChatTemplate.load(folder, tokenizer)
    family = tool_call_format(None, chat)
    about = {"prompt counts": f"template and tokenizer of {model or 'the pocket model'}"}
    return Reference(model or "glm-pocket", family, _prompt_tokens(chat), about=about)


def make(
    glm: GLM, plain: GLM | None = None, questions: Sequence[Question] | None = None
) -> Reference:
    """Everything of a model on its backend; plain: the same in plain BF16, for a yardstick."""
    asked = probes() if questions is None else questions
    with ThreadPoolExecutor(len(asked)) as pool:
        recorded = list(pool.map(lambda question: _record(glm, question), asked))
    about = {"answers": f"{glm.name}, {glm.model.dtype} on {glm.model.ops.name}"}
    reference = Reference(
        glm.name, glm.call_format, _prompt_tokens(glm.chat), tuple(recorded), about=about
    )
    if plain is None:
        return reference
    return replace(reference, plain=_yardstick(plain, recorded).measures)


def make_pocket(every: int = 1) -> Reference:
    """The pocket model's, computed here on the reference backend; takes some seconds."""
    glm = GLM.load(backend="reference", dtype="float32")
    return make(glm, GLM.load(backend="reference", dtype="bfloat16"), probes()[::every])


def make_file(model: str | None, path: Path, *, backend: str, yardstick: bool) -> Reference:
    """Load a model in the checkpoint's precision, or the pocket model in float32, and store it."""
    dtype = "float32" if yardstick else "auto"
    glm = GLM.load(model, backend=backend, dtype=dtype)
    plain = GLM.load(model, backend="reference", dtype="bfloat16") if yardstick else None
    reference = make(glm, plain)
    reference.write(path)
    return reference


def said(answer: Generated) -> Said:
    """A generated answer in the shape of a server's."""
    calls = tuple(Call(call.name, call.arguments, call.id) for call in answer.tool_calls)
    whole = bool(calls) and answer.finish_reason == "stop"
    finish = "tool_calls" if whole else answer.finish_reason
    return Said(answer.content or "", answer.reasoning or "", calls, finish)


def _prompt_tokens(chat: ChatTemplate) -> dict[str, int]:
    return {question.name: len(_encode(chat, question)[0]) for question in COUNTED}


def _encode(chat: ChatTemplate, question: Question) -> tuple[list[int], str]:
    prompt = chat.encode(
        list(question.messages), question.tools, chat_template_kwargs=question.switches
    )
    return prompt.token_ids, prompt.text


def _record(glm: GLM, question: Question) -> Recorded:
    answer = glm.generate(
        list(question.messages),
        tools=question.tools,
        chat_template_kwargs=dict(question.switches),
        temperature=0.0,
        max_tokens=question.max_tokens,
    )
    prompt, _ = _encode(glm.chat, question)
    ids = (*prompt, *answer.token_ids)
    rows_TV = _rows(glm, ids)
    positions = [Position(i, _top(glm, rows_TV[i - 1])) for i in _chosen(len(prompt), len(ids))]
    pieces = tuple(_text(glm, token) for token in answer.token_ids)
    shown = said(answer)
    calls = tuple((call.name, call.arguments) for call in shown.calls)
    return Recorded(
        *(question, tuple(prompt), answer.token_ids, pieces),
        *(shown.text, calls, tuple(positions)),
    )


def _chosen(prompt: int, whole: int) -> list[int]:
    """Evenly spread indices of tokens to compare, first of the prompt, then of the answer."""
    end = min(prompt, REACH)
    asked = range(FIRST, end, max(1, (end - FIRST) // IN_PROMPT))
    answered = range(prompt, whole, max(1, -(-(whole - prompt) // IN_ANSWER)))
    return [*asked, *answered]


def _rows(glm: GLM, ids: Sequence[int]) -> Tensor:
    """(T, V) float64: log probabilities of what follows each token."""
    return glm.logits(ids)[:, : glm.tokenizer.vocab_size].double().log_softmax(-1)


def _top(glm: GLM, row_V: Tensor) -> tuple[tuple[int, str, float], ...]:
    best = row_V.topk(TOP)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return tuple((token, _text(glm, token), round(value, 7)) for token, value in pairs)


def _text(glm: GLM, token: int) -> str:
    return glm.tokenizer.token_text(token)


def _yardstick(plain: GLM, recorded: Sequence[Recorded]) -> Spread:
    def pairs() -> Iterator[tuple[dict[str, float], dict[str, float]]]:
        for record in recorded:
            rows_TV = _rows(plain, record.ids)
            for position in record.positions:
                top = _top(plain, rows_TV[position.index - 1])
                yield position.by_id, {str(token): value for token, _, value in top}

    return Spread.of(pairs())
