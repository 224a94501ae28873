"""What the MTP layer drafts, and how much of it the model accepts."""

import torch
from torch import Tensor

from glm_portable.verify.golden.record import Golden
from glm_portable.verify.metrics import K, distance, judge
from glm_portable.verify.model.against import check, numbers, summary
from glm_portable.verify.model.layers import WHOLE_SLOPE, Runner
from glm_portable.verify.model.walk import Walked, offsets
from glm_portable.verify.results import Check


def acceptance(ours: Runner, golden: Golden, walked: Walked) -> Check:
    """Drafts by position against the reference's. One is accepted if it is the model's own choice
    a token later; which drafts differ must be explained by how near the second was."""
    assert walked.mtp_TD is not None
    drafted = summary(ours.model, walked.mtp_TD, mtp=True)
    off, plain = (
        distance(drafted.projected_TW, golden.tensors["mtp.logits"].double()),
        golden.plain["mtp.logits"],
    )
    found = judge(off, plain, WHOLE_SLOPE)
    other = drafted.best_T != golden.tensors["mtp.top"]
    far = golden.tensors["mtp.margin"].double() > 2 * K * golden.noise["mtp"]
    wrong = int((other & far).sum())
    if wrong:
        found.append(f"{wrong} of {len(other)} drafts are others than the reference's, unexplained")
    chosen = summary(ours.model, walked.hidden_TD).best_T
    mine = accepted(drafted.best_T, chosen, golden)
    theirs = accepted(golden.tensors["mtp.top"], golden.tensors["top.ids"][:, 0], golden)
    measures = numbers(off, plain) | {
        "accepted": mine.double().mean().item(),
        "reference_accepted": theirs.double().mean().item(),
        "drafts_unexplained": wrong,
    }
    series = {"accepted": mine.double().tolist(), "reference_accepted": theirs.double().tolist()}
    return check("MTP head", "drafts, by position", found, measures, series)


def accepted(drafts_T: Tensor, chosen_T: Tensor, golden: Golden) -> Tensor:
    """Whether each draft is what the model chose one row on; a prompt's last has no such row."""
    starts = offsets(golden.prompts)
    rows = torch.cat([torch.arange(a, b - 1) for a, b in zip(starts, starts[1:], strict=False)])
    return drafts_T[rows] == chosen_T[rows + 1]
