"""One request from its submission to its last delta."""

from collections.abc import Callable
from dataclasses import dataclass, field

from glm_portable.engine.logprobs import PromptLogprobs
from glm_portable.engine.sampling import RowSampler, Sampled
from glm_portable.engine.scheduler import Sequence as TokenSequence
from glm_portable.engine.stopping import AnswerText
from glm_portable.engine.types import Delta, FinishReason, SamplingParams, Timeline

OnDelta = Callable[[Delta], None]


@dataclass(eq=False, slots=True)
class Request:
    """What the engine keeps of a request; survives preemption.

    eos_ids: the model's tokens that end the answer, none with ignore_eos. num_prompt_tokens: how
    many of sequence.token_ids are the prompt's. prompt_logprobs: until the first delta.
    """

    params: SamplingParams
    on_delta: OnDelta
    sequence: TokenSequence
    num_prompt_tokens: int
    eos_ids: frozenset[int]
    text: AnswerText
    row: RowSampler
    prompt_logprobs: PromptLogprobs | None = None
    timeline: Timeline = field(default_factory=Timeline)
    _stop_ids: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self._stop_ids = self.eos_ids.union(self.params.stop_token_ids)

    @property
    def request_id(self) -> str:
        return self.sequence.request_id

    @property
    def num_generated(self) -> int:
        return len(self.sequence.token_ids) - self.num_prompt_tokens

    def append(self, sampled: Sampled) -> Delta:
        """Take the next token; the delta has a finish_reason if it was the last one.

        The token that ends an answer, EOS or of stop_token_ids, is in token_ids and logprobs and
        counts as generated (as in vLLM), but is not in the text.
        """
        prompt, token_id = self.prompt_logprobs, sampled.token_id
        if prompt is not None:
            self.prompt_logprobs = None
        if token_id is None or (prompt and not prompt.usable):
            return self.finish("error", error=sampled.error)
        sequence, row = self.sequence, self.row
        sequence.token_ids.append(token_id)
        row.append(token_id)
        reason: FinishReason | None = None
        stop_reason: str | int | None = None
        if token_id in self._stop_ids or row.state is not None:
            reason, stop_reason = self._ends_with(token_id)
        text = ""
        if reason is None:
            text = self.text.add(token_id, row.num_generated > self.params.min_tokens)
            if self.text.found is not None:
                reason, stop_reason = "stop", self.text.found
            elif len(sequence.token_ids) >= sequence.max_length:
                reason = "stop" if row.complete else "length"
        if reason is not None:
            text += self.text.finish()
        logprobs = () if sampled.logprob is None else (sampled.logprob,)
        if row.num_generated > 1:
            # By position: naming the arguments of a call takes as long as the rest of it.
            return Delta((token_id,), text, logprobs, reason, stop_reason)
        return Delta(
            (token_id,),
            text,
            logprobs,
            reason,
            stop_reason,
            num_cached_tokens=sequence.num_cached,
            prompt_logprobs=tuple(prompt.found) if prompt else (),
        )

    def finish(self, reason: FinishReason, error: str | None = None) -> Delta:
        """The last delta of a request that is given up; text still held back is dropped."""
        return Delta(finish_reason=reason, error=error)

    def _ends_with(self, token_id: int) -> tuple[FinishReason | None, str | int | None]:
        if token_id in self.eos_ids or self.row.ended_by(token_id):
            return "stop", None
        if token_id in self.params.stop_token_ids:
            return "stop", token_id
        return None, None
