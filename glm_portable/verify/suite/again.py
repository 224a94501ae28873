"""Whether a result comes out the same in every bit: again, and without its neighbours."""

from collections.abc import Mapping

import torch
from torch import Tensor

from glm_portable.verify.call import STEP, Call, Tensors

BY_TOKEN = {
    "linear": ("x",), "rms_norm": ("x", "residual"), "silu_mul": ("x",), "route": ("x",),
    "experts": ("x", "weights", "experts"),
}  # fmt: skip
BY_SEQUENCE = {"attend": ("q",), "rope_store": ("q", "k", "v", "cos", "sin")}
PAGES = ("k_pages", "v_pages")


def same_bits(a: Tensors, b: Tensors) -> bool:
    """Whether all results are equal, NaN with NaN of the same bits too."""
    return all(torch.equal(_bits(a[name]), _bits(b[name])) for name in a)


def alone(call: Call) -> Call | None:
    """The call for its first token, or its first sequence; None if there is no other."""
    t = dict(call.tensors)
    if call.op in BY_TOKEN:
        if len(t["x"]) == 1:
            return None
        t |= {name: t[name][:1] for name in BY_TOKEN[call.op] if name in t}
        return Call(call.op, t, call.attributes)
    if len(t["query_ends"]) == 1:
        return None
    count = int(t["query_ends"][0])
    t |= {name: t[name][:count] for name in (*BY_SEQUENCE[call.op], "positions", "slots")}
    t |= {name: t[name][:1] for name in STEP[2:]}
    return Call(call.op, t, call.attributes)


def last_alone(call: Call) -> Call | None:
    """The call for its last token, as a step of its own; None if there is no other."""
    t = dict(call.tensors)
    by_token = BY_TOKEN.get(call.op) or (*BY_SEQUENCE[call.op], "positions", "slots")
    if len(t[by_token[0]]) == 1:
        return None
    t |= {name: t[name][-1:] for name in by_token if name in t}
    if call.op in BY_SEQUENCE:
        t |= {name: t[name][-1:] for name in STEP[2:]}
        t["query_ends"] = torch.ones_like(t["query_ends"])
    return Call(call.op, t, call.attributes)


def part(call: Call, results: Tensors) -> Mapping[str, Tensor]:
    """Of a whole call's results, or of `alone`'s, what the first token or sequence has."""
    if call.op in BY_TOKEN:
        return {name: value[:1] for name, value in results.items()}
    count = int(call.tensors["query_ends"][0])
    if call.op == "attend":
        return {"y": results["y"][:count]}
    slots = call.tensors["slots"][:count]
    pages = {name: results[name].flatten(0, 1)[slots] for name in PAGES}
    return {"q": results["q"][:count], **pages}


def last_part(call: Call, results: Tensors) -> Mapping[str, Tensor]:
    """Of a whole call's results, or of `last_alone`'s, what the last token has."""
    found = {name: value[-1:] for name, value in results.items() if name not in PAGES}
    slot = call.tensors["slots"][-1:] if call.op == "rope_store" else None
    pages = {n: results[n].flatten(0, 1)[slot] for n in PAGES if n in results and slot is not None}
    return found | pages


def _bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)
