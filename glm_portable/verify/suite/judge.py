"""Whether a call's results are right: numbers by the rule of `metrics`, choices by their margin.

Three results are compared: the backend's, plain PyTorch's in the same precision, and the exact one
in float64, which is the reference's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from glm_portable.ops import Ops
from glm_portable.verify.call import Call, Tensors, perform
from glm_portable.verify.metrics import (
    FLOOR,
    K_TAIL,
    SLOPE,
    K,
    distance,
    faults,
    flips,
    router_error,
    ulps,
)  # fmt: skip

ULPS = 1.0
"""That are always allowed beside what plain PyTorch errs: the last rounding."""


@dataclass(frozen=True)
class Verdict:
    """findings: what is wrong, one sentence each. measures: the numbers behind it.

    error, allowed, slope, slope_allowed, tail, tail_allowed, ulps, ulps_allowed: of the result that
    comes nearest to its bounds, or is furthest beyond them. flips_explained, flips_unexplained: of
    a router, in choices.
    """

    findings: tuple[str, ...]
    measures: Mapping[str, float] = field(default_factory=dict)


def verdict(call: Call, ops: Ops, dtype: torch.dtype, exact: bool = False) -> Verdict:
    """Run the call on a backend and on the reference, and judge. exact: as in `Case`."""
    from glm_portable.backends import reference

    plain, true = perform(call, reference, dtype), perform(call, reference, torch.float64)
    return judge(call, perform(call, ops, dtype), plain, true, exact)


def judge(
    call: Call, actual: Tensors, plain: Tensors, true: Tensors, exact: bool = False
) -> Verdict:
    """true: in float64. exact: as in `Case`."""
    wrong = _shapes(actual, plain)
    if wrong:
        return Verdict(tuple(wrong))
    if call.op == "route":
        return _route(call, actual, plain, true, exact)
    found, measures = [], [Verdict(())]
    for name in actual:
        one = numbers(actual[name], plain[name], true[name])
        measures.append(one)
        label = "" if len(actual) == 1 else f"{name}: "
        found += [f"{label}{finding}" for finding in one.findings]
    if call.op == "rope_store":
        found += _copies(call, actual, plain)
    return Verdict(tuple(found), max(measures, key=_nearness).measures)


def numbers(actual: Tensor, plain: Tensor, true: Tensor) -> Verdict:
    """One result."""
    found = faults(actual, plain, true)
    ours, theirs = distance(actual, true), distance(plain, true)
    units, plain_units = ulps(actual, true), ulps(plain, true)
    allowed = K_TAIL * plain_units + max(ULPS, 10 * FLOOR / torch.finfo(actual.dtype).eps)
    if not units <= allowed:
        found.append(
            f"largest error {units:.3g} exceeds {allowed:.3g} (in units in the last place, of the "
            "value or its row)"
        )
    measures = {
        "error": ours.error, "allowed": K * theirs.error + FLOOR,
        "slope": ours.slope, "slope_allowed": K * abs(theirs.slope - 1) + SLOPE,
        "tail": ours.tail, "tail_allowed": K_TAIL * theirs.tail + 10 * FLOOR,
        "ulps": units, "ulps_allowed": allowed,
    }  # fmt: skip
    return Verdict(tuple(found), measures)


def _nearness(one: Verdict) -> float:
    """How near to the bound, 1 being on it."""
    m = one.measures
    return max((m[n] / m[f"{n}_allowed"] for n in ("tail", "ulps")), default=-1.0) if m else -1.0


def _shapes(actual: Tensors, plain: Tensors) -> list[str]:
    found = []
    for name, expected in plain.items():
        one = actual[name]
        if one.dtype != expected.dtype or one.shape != expected.shape:
            found.append(
                f"{name} is {one.dtype} {tuple(one.shape)}, not {expected.dtype} "
                f"{tuple(expected.shape)}"
            )
    return found


def _copies(call: Call, actual: Tensors, plain: Tensors) -> list[str]:
    """Values are stored as they are, and slots that are no token's stay as they were: in every bit
    what plain PyTorch stores."""
    kept = torch.ones(actual["k_pages"].shape[:2], dtype=torch.bool).flatten()
    kept[call.tensors["slots"]] = False
    found = []
    for name, rows, what in (
        ("v_pages", ~kept, "stored values are not what was given"),
        ("v_pages", kept, "slots of other tokens were written"),
        ("k_pages", kept, "slots of other tokens were written"),
    ):
        ours, theirs = (t[name].flatten(0, 1)[rows].double() for t in (actual, plain))
        if count := int((ours != theirs).sum()):
            found.append(f"{name}: {what} ({count} of {ours.numel()} numbers differ)")
    return found


def _route(call: Call, actual: Tensors, plain: Tensors, true: Tensors, exact: bool) -> Verdict:
    """Choices by their margin, weights where all three chose the same experts."""
    count = len(call.tensors["bias"])
    chosen = actual["experts"].long()
    if ((chosen < 0) | (chosen >= count)).any():
        return Verdict((f"an expert is chosen that is not one of 0 to {count - 1}",))
    choice, error, firm = _choice(call)
    ids = [t["experts"][firm] for t in (actual, true)]
    explained, unexplained = flips(ids[0], choice[firm], error[firm])
    found = []
    if exact:
        unexplained = int((ids[0] != ids[1]).sum())
    if unexplained:
        found.append(f"{unexplained} choices of other experts that rounding does not explain")
    elif wrong := _out_of_order(ids[0], choice[firm], error[firm]):
        found.append(f"{wrong} choices are not in the order of their scores")
    if _lost_nan(actual, true):
        found.append("a token that is NaN has weights that are not")
    sets = [t["experts"].sort(-1).values for t in (actual, plain, true)]
    agreed = ((sets[0] == sets[2]) & (sets[1] == sets[2])).all(-1)
    counts = {"flips_explained": float(explained), "flips_unexplained": float(unexplained)}
    if not agreed.any():
        found = found or ["no token goes to the exact experts: nothing to compare weights with"]
        return Verdict(tuple(found), counts)
    one = numbers(*(_dense(t, count)[agreed] for t in (actual, plain, true)))
    return Verdict((*found, *one.findings), {**one.measures, **counts})


def _lost_nan(actual: Tensors, true: Tensors) -> bool:
    ours, exact = (t["weights"].isnan().all(-1) for t in (actual, true))
    return bool((exact & ~ours).any())


def _choice(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """(what experts are chosen by, its error in float32, tokens that can be judged by it).

    Not those with NaN, nor those whose groups are as near to each other as errors reach.
    """
    x, gate, bias = (call.tensors[n].double() for n in ("x", "gate", "bias"))
    choice = (x @ gate.T).sigmoid() + bias
    error = router_error(x, gate, choice)
    firm = choice.isnan().logical_not().all(-1)
    groups, kept = call.attributes["n_group"], call.attributes["topk_group"]
    if groups > 1:
        split = choice.view(len(choice), groups, -1)
        best = split.topk(2, dim=-1).values.sum(-1)
        order = best.sort(dim=-1, descending=True, stable=True)
        margin = order.values[:, kept - 1] - order.values[:, kept]
        firm &= (margin == 0) | (margin > 4 * error.amax(-1))
        keep = torch.zeros_like(best, dtype=torch.bool).scatter_(1, order.indices[:, :kept], True)
        choice = split.masked_fill(~keep.unsqueeze(-1), float("-inf")).flatten(-2)
    return choice, error, firm


def firm_choices(call: Call) -> Tensor:
    """(T,) whether float32 must choose a token's experts as float64 does, NaN set aside."""
    choice, error, firm = _choice(call)
    k = call.attributes["num_experts_per_tok"]
    order = choice.sort(dim=-1, descending=True, stable=True)
    margin = order.values[:, k - 1] - order.values[:, k]
    near = error.gather(1, order.indices[:, k - 1 : k + 1]).sum(-1)
    return firm & ((margin == 0) | (margin > near))


def _out_of_order(experts_TK: Tensor, choice_TE: Tensor, error_TE: Tensor) -> int:
    at = experts_TK.long()
    scores, errors = choice_TE.gather(1, at), error_TE.gather(1, at)
    behind = scores[:, 1:] - scores[:, :-1] > errors[:, 1:] + errors[:, :-1]
    return int(behind.sum())


def _dense(result: Tensors, count: int) -> Tensor:
    """Each expert's weight, (T, E): 0 for those that were not chosen."""
    weights = result["weights"]
    dense = torch.zeros(len(weights), count, dtype=weights.dtype)
    return dense.scatter_(1, result["experts"].long(), weights)
