"""What is asked of engine and server while they are measured."""

from dataclasses import dataclass
from typing import Any

from glm_portable.engine.limits import EngineLimits

PAGE = 16
GREEDY = {"temperature": 0.0}
SAMPLED = {"temperature": 1.0, "top_p": 0.95}


@dataclass(frozen=True)
class Load:
    """So many sequences after a prompt of so many tokens, for so many steps."""

    sequences: int
    input_len: int
    steps: int
    sampled: bool = False

    @property
    def params(self) -> dict[str, Any]:
        return dict(SAMPLED if self.sampled else GREEDY)

    @property
    def limits(self) -> EngineLimits:
        length = self.input_len + self.steps + 1
        return EngineLimits(
            max_model_len=length,
            max_num_seqs=self.sequences,
            max_num_batched_tokens=self.sequences * self.input_len,
            num_pages=self.sequences * (-(-length // PAGE) + 2),
            page_size=PAGE,
        )

    def prompt(self, number: int) -> list[int]:
        return [256 + (number * 31 + i) % 1000 for i in range(self.input_len)]
