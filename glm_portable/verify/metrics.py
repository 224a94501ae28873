"""How far a result is from the exact one, and the rule that says whether that is too far.

A fixed tolerance is either too loose for easy inputs or too tight for hard ones. So the yardstick
is plain PyTorch in the same precision on the same inputs: a backend may be at most `K` times as
far from the float64 result (as FlashAttention's tests and torch._dynamo's accuracy check do).
A ratio of norms cannot see everything, so three more things are looked at: the slope (a result
scaled by a constant), the largest single error (one bad row among many), and which values are not
finite.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

K = 2.0
K_TAIL = 4.0
# Plain PyTorch further off than this is no yardstick: the case is wrong, or its inputs are.
WORST_PLAIN = 0.25
# Relative error that is always allowed: float32 sums in another order differ by about this.
FLOOR = 1e-6
SLOPE = 2e-3


@dataclass(frozen=True)
class Distance:
    """How `actual` differs from `exact`.

    nmse: |actual - exact|^2 / |exact|^2.
    slope: the s for which s * exact is nearest to actual; 1 for an unbiased result.
    tail: the largest |actual - exact|, in units of the root mean square of exact.
    finite: whether both are infinite and NaN in the same places (the rest is compared).
    """

    nmse: float
    slope: float
    tail: float
    finite: bool

    @property
    def error(self) -> float:
        """Relative root-mean-square error."""
        return math.sqrt(self.nmse)


def distance(actual: Tensor, exact: Tensor) -> Distance:
    """Compare two tensors of one shape, in float64."""
    assert actual.shape == exact.shape, f"{actual.shape=} {exact.shape=}"
    a, e = actual.detach().double().flatten(), exact.detach().double().flatten()
    both = a.isfinite() & e.isfinite()
    same = _same_nonfinite(a, e)
    a, e = a[both], e[both]
    if e.numel() == 0:
        return Distance(0.0, 1.0, 0.0, same)
    power = max(e.square().sum().item(), torch.finfo(torch.float64).tiny)
    difference = a - e
    return Distance(
        nmse=difference.square().sum().item() / power,
        slope=1 + (difference @ e).item() / power,
        tail=difference.abs().max().item() / (power / e.numel()) ** 0.5,
        finite=same,
    )


def faults(actual: Tensor, plain: Tensor, exact: Tensor) -> list[str]:
    """What is wrong with `actual`, one sentence a finding; empty if it passes.

    plain: plain PyTorch in the precision of `actual`. exact: the same computation in float64.
    """
    return judge(distance(actual, exact), distance(plain, exact))


def judge(ours: Distance, theirs: Distance, slope: float = SLOPE) -> list[str]:
    """`faults` by distances: ours and plain PyTorch's. slope: what is always allowed in it."""
    found = []
    if not ours.finite:
        found.append("infinite or NaN values are not where the exact result has them")
    if not theirs.error <= WORST_PLAIN:
        found.append(f"plain PyTorch's own error is {theirs.error:.3g}: nothing to compare with")
    limit = K * theirs.error + FLOOR
    if not ours.error <= limit:
        found.append(f"error {ours.error:.3g} exceeds {limit:.3g} ({K:g} times plain PyTorch's)")
    drift = K * abs(theirs.slope - 1) + slope
    if not abs(ours.slope - 1) <= drift:
        found.append(f"slope {ours.slope:.5f} is further than {drift:.3g} from 1")
    limit = K_TAIL * theirs.tail + 10 * FLOOR
    if not ours.tail <= limit:
        found.append(f"largest error {ours.tail:.3g} exceeds {limit:.3g} (in units of the RMS)")
    return found


def ulps(actual: Tensor, exact: Tensor) -> float:
    """The largest error in units in the last place of the type of `actual`.

    A unit is taken at a value's own size, or at the root mean square of its row where it is
    smaller: a sum that cancels is no better than its terms. Row by row, because one row of large
    numbers would hide any error in the others.
    """
    rows = exact.shape[-1] if exact.dim() else 1
    a, e = (t.detach().double().reshape(-1, rows) for t in (actual, exact))
    both = a.isfinite() & e.isfinite()
    error, size = (torch.where(both, t, 0.0) for t in ((a - e).abs(), e.abs()))
    count = both.sum(-1, keepdim=True).clamp(min=1)
    rms = (size.square().sum(-1, keepdim=True) / count).sqrt()
    limits = torch.finfo(actual.dtype)
    size = torch.maximum(size, rms).clamp(min=limits.tiny)
    unit = limits.eps * torch.exp2(size.log2().floor())
    return (error / unit).max().item() if error.numel() else 0.0


def _same_nonfinite(a: Tensor, e: Tensor) -> bool:
    same_nan = torch.equal(a.isnan(), e.isnan())
    infinite = a.isinf() | e.isinf()
    return same_nan and torch.equal(a[infinite], e[infinite])


def flips(experts_TK: Tensor, choice_TE: Tensor, error_TE: Tensor) -> tuple[int, int]:
    """(explained, unexplained): how often a router took another expert than the exact one.

    experts_TK: its choices. choice_TE: what experts are chosen by, in float64; of equal ones the
    lowest comes first. error_TE: how far float32 may be off in each (`router_error`). A flip is
    explained if the two experts are no further apart than their errors together.
    """
    k = experts_TK.shape[1]
    exact_TK = choice_TE.sort(dim=-1, descending=True, stable=True).indices[:, :k]
    explained = unexplained = 0
    for mine, true, choice, error in zip(
        experts_TK.tolist(), exact_TK.tolist(), choice_TE.tolist(), error_TE.tolist(), strict=True
    ):
        # Best against best: no other pairing has smaller gaps.
        gained, lost = (
            sorted(a - b, key=lambda e: -choice[e])
            for a, b in ((set(mine), set(true)), (set(true), set(mine)))
        )
        near = [
            choice[b] - choice[a] <= error[a] + error[b] for a, b in zip(gained, lost, strict=False)
        ]
        explained += sum(near)
        unexplained += len(lost) - sum(near)  # an expert taken twice displaces one as well
    return explained, unexplained


def router_error(x_TD: Tensor, gate_ED: Tensor, choice_TE: Tensor) -> Tensor:
    """How far sigmoid(x @ gate.T) + bias may be off in float32, (T, E) in float64.

    A sum of D products is off by about sqrt(D) units of rounding of the sum of their magnitudes
    (Higham and Mary 2019), of which the sigmoid passes on a quarter; sigmoid and the sum with the
    bias round once more each, and the chips' exponential is off by a few units.
    """
    unit = torch.finfo(torch.float32).eps / 2
    magnitude_TE = x_TD.double().abs() @ gate_ED.double().abs().T
    error_TE: Tensor = x_TD.shape[1] ** 0.5 * magnitude_TE / 4 + 4 + choice_TE.double().abs()
    return error_TE * unit
