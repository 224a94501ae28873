"""Which drafts are right: the sampled tokens of each request, up to the first that is another.

Speculative sampling (Leviathan, Kalman and Matias 2023) accepts a draft x with probability
min(1, p(x) / q(x)) and otherwise draws from the normalised max(0, p - q), where p is the model's
distribution and q the draft's. The drafts here are the MTP layer's best guesses: q is 1 at the
draft. So the rule accepts x with probability p(x) and otherwise draws from p without x, and that is
what drawing a token from p and comparing it with the draft does. The token drawn is the one to
keep in either case. As the draw for a position depends on the request's seed and the position
alone, an answer has the same tokens with drafts as without, whatever they are.
"""

import logging
from collections.abc import Sequence

from msgspec import Struct
from torch import Tensor

from glm_portable.engine.request import Request
from glm_portable.engine.sampling import RowSampler, Sampled, Sampler
from glm_portable.engine.types import Delta
from glm_portable.ops import ids

log = logging.getLogger(__name__)


class Turn(Struct, eq=False):
    """One request's part of a step.

    row: the row of its first logits; those of its drafts come after it. deltas: what it gained, a
    token each. failed: whether taking a token raised.
    """

    request: Request
    row: int
    drafts: Sequence[int] = ()
    deltas: list[Delta] = []
    failed: bool = False

    @property
    def num_accepted(self) -> int:
        """How many of the drafts it now has among its tokens."""
        count = 0
        for delta, draft in zip(self.deltas, self.drafts, strict=False):
            if delta.token_ids != (draft,):
                break
            count += 1
        return count

    @property
    def going_on(self) -> bool:
        """Whether the request wants more tokens."""
        return not self.failed and self.deltas[-1].finish_reason is None

    @property
    def reach(self) -> int:
        """How many positions can be sampled now, from the next one on.

        A request that changes its logits by the tokens before them can sample one only.
        """
        return 1 if self.request.row.adjusts else 1 + len(self.drafts) - len(self.deltas)

    def take(self, sampled: Sequence[Sampled]) -> bool:
        """Append what was sampled, as far as it goes; whether more is to be sampled."""
        for one in sampled:
            place = len(self.deltas)
            delta = self.append(one)
            if delta is None or delta.finish_reason is not None or place == len(self.drafts):
                return False
            if one.token_id != self.drafts[place]:
                return False
            if self.request.row.adjusts:  # the rest was sampled without knowing of this token
                return True
        return True

    def append(self, sampled: Sampled) -> Delta | None:
        """Append one token; None if that failed."""
        try:
            delta = self.request.append(sampled)
        except Exception:
            log.exception("request %s failed after sampling", self.request.request_id)
            self.failed = True
            return None
        self.deltas.append(delta)
        return delta


def accept(turns: Sequence[Turn], logits_RV: Tensor, sampler: Sampler) -> None:
    """Give each turn's request its tokens: the drafts that are right, and the one after them.

    logits_RV: at the last known token of each turn, and at each of its drafts. All rows are sampled
    at once, but for those of requests whose logits depend on the token before.
    """
    if not any([turn.drafts for turn in turns]):
        sampled = sampler.sample(logits_RV, [turn.request.row for turn in turns])
        for turn, one in zip(turns, sampled, strict=True):
            turn.append(one)
        return
    left = list(turns)
    while left:
        rows: list[int] = []
        rows_of: list[RowSampler] = []
        ahead: list[int] = []
        ends = []
        for turn in left:
            reach, begin = turn.reach, turn.row + len(turn.deltas)
            rows += range(begin, begin + reach)
            rows_of += [turn.request.row] * reach
            ahead += range(reach)
            ends.append(len(rows))
        whole = len(rows) == len(logits_RV)
        chosen_RV = logits_RV if whole else logits_RV[ids(rows, logits_RV.device)]
        sampled = sampler.sample(chosen_RV, rows_of, ahead)
        begins = [0, *ends[:-1]]
        left = [
            turn
            for turn, begin, end in zip(left, begins, ends, strict=True)
            if turn.take(sampled[begin:end])
        ]
