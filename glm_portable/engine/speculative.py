"""How many tokens to draft, as vLLM's and SGLang's command lines say it; torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from glm_portable.errors import UsageError
from glm_portable.options import json_object

MOST = 5
"""Drafts at a time. The MTP layer was trained for one, so each further one is a worse guess."""

METHODS = ("mtp", "glm4_moe_mtp")
"""Names of the model's own MTP layer in vLLM, the second one until 2025."""

ALGORITHMS = ("EAGLE", "NEXTN")
"""SGLang's names of the same."""

SGLANG_STEPS = 3
"""num_steps where only the algorithm is named; the GLM-4.5 README gives the same number."""

Chain = Literal["normed", "residual"]


@dataclass(frozen=True)
class SpeculativeConfig:
    """num_speculative_tokens: how many tokens to draft at a time, 1 to 5.

    chain: which hidden state of the MTP layer a second draft is made from: the one after the
    layer's norm (SGLang, transformers) or the one before it (vLLM), of which slightly more drafts
    are right (docs/speculative.md).
    """

    num_speculative_tokens: int = 1
    chain: Chain = "residual"

    def __post_init__(self) -> None:
        count = self.num_speculative_tokens
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
            raise UsageError(f"num_speculative_tokens is {count!r}; it must be from 1 to {MOST}.")
        if self.chain not in get_args(Chain):
            raise UsageError(f"chain is {self.chain!r}; it must be normed or residual.")

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """From vLLM's mapping, such as {"method": "mtp", "num_speculative_tokens": 3}.

        Raises UsageError for what is not supported.
        """
        fields = dict(given)
        method = fields.pop("method", "mtp")
        if method not in METHODS:
            raise UsageError(
                f"the speculative method {method!r} is not supported: use mtp, the model's own."
            )
        unknown = sorted(set(fields) - {"num_speculative_tokens", "chain"})
        if unknown:
            raise UsageError(
                f"{unknown[0]!r} is no field of the speculative config; it has method, "
                "num_speculative_tokens and chain."
            )
        return cls(**fields)


def from_options(
    speculative_config: str | Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    algorithm: str | None,
    num_steps: int | None,
    eagle_topk: int | None,
    num_draft_tokens: int | None,
) -> SpeculativeConfig | None:
    """What the command line asks for; None if it asks for no drafts. Raises UsageError.

    speculative_config: vLLM's JSON, or a mapping from a configuration file. fields: those of it
    that were given alone (--speculative-config.method mtp), None where not. The others are SGLang's
    options of these names.
    """
    ours = {name: value for name, value in fields.items() if value is not None}
    theirs = (algorithm, num_steps, eagle_topk, num_draft_tokens) != (None,) * 4
    if theirs and (ours or speculative_config is not None):
        raise UsageError(
            "--speculative-config and --speculative-algorithm say the same in two ways: give one."
        )
    if theirs:
        return _from_sglang(algorithm, num_steps, eagle_topk, num_draft_tokens)
    if speculative_config is None and not ours:
        return None
    example = {"method": "mtp", "num_speculative_tokens": 1}
    given = json_object("--speculative-config", speculative_config, example)
    return SpeculativeConfig.of(given | ours)


def _from_sglang(
    algorithm: str | None,
    num_steps: int | None,
    eagle_topk: int | None,
    num_draft_tokens: int | None,
) -> SpeculativeConfig:
    if algorithm is None or algorithm.upper() not in ALGORITHMS:
        raise UsageError(
            f"--speculative-algorithm is {algorithm or 'not given'}; it must be EAGLE or NEXTN, "
            "which here both mean the model's MTP layer."
        )
    if eagle_topk not in (None, 1):
        raise UsageError(
            f"--speculative-eagle-topk is {eagle_topk}; only 1 is supported: a chain, not a tree."
        )
    if num_steps is None:
        num_steps = SGLANG_STEPS if num_draft_tokens is None else num_draft_tokens - 1
    if num_draft_tokens not in (None, num_steps + 1):
        raise UsageError(
            f"--speculative-num-draft-tokens is {num_draft_tokens}; it must be "
            f"{num_steps + 1}: the {num_steps} of --speculative-num-steps and the token before."
        )
    if not 1 <= num_steps <= MOST:
        raise UsageError(f"--speculative-num-steps is {num_steps}; it must be from 1 to {MOST}.")
    return SpeculativeConfig(num_steps)
