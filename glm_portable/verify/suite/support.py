"""What a backend brings itself, what it takes from the reference, and what it refuses."""

from collections.abc import Iterator

import torch

from glm_portable.backends import reference
from glm_portable.errors import UsageError
from glm_portable.ops import Ops
from glm_portable.verify.call import OPS, bind
from glm_portable.verify.cases import named
from glm_portable.verify.results import Check, Status
from glm_portable.verify.suite.observe import is_reference, observing

ASKED: list[tuple[str, str, str]] = [
    ("linear", "plain weights", "one token, 192 to 176"),
    ("linear", "fp8, a scale a channel", "fp8 per channel"),
    ("linear", "fp8, scales of 128 x 128 blocks", "fp8 blocks with a rest"),
    ("linear", "fp8 weights and activations", "fp8, dynamic activations"),
    ("linear", "int8, a scale a channel", "int8 per channel"),
    ("linear", "int8 weights and activations", "int8, dynamic activations"),
    ("experts", "plain weights", "one token"),
    ("experts", "another rank's choices", "expert parallel, one token"),
    ("experts", "fp8 weights alone", "fp8 weights alone"),
    ("experts", "fp8 weights and activations", "fp8, dynamic activations, one token"),
    ("experts", "fp8, scales of 128 x 128 blocks", "fp8 blocks with rests"),
    ("experts", "int8 weights and activations", "int8, dynamic activations"),
    ("attend", "a cache of the model's type", "decode of one"),
    ("attend", "pages of 8 tokens", "pages of 8"),
    ("attend", "an fp8 cache, e4m3fn",
     "decode of unequal lengths, e4m3fn pages, scales 2 and 0.25"),
    ("attend", "an fp8 cache, e4m3fnuz",
     "decode of unequal lengths, e4m3fnuz pages, scales 2 and 0.25"),
    ("rms_norm", "with residual", "with residual"),
    ("silu_mul", "the gate", "17 tokens, 192 columns"),
    ("rope_store", "with norms of q and k", "64 of 128, one group"),
    ("rope_store", "without", "half a head"),
    ("route", "normalised weights", "exact ties"),
    ("route", "groups", "exact ties, groups"),
    ("route", "weights as they are", "unnormalised"),
]  # fmt: skip
"""(op, what it may be asked for, the case that asks for it)."""


def supported(ops: Ops, dtype: torch.dtype = torch.bfloat16) -> Iterator[Check]:
    """For each op who wrote it, then what happens when it is asked: nothing is judged here."""
    for op in OPS:
        theirs = is_reference(ops, op) and ops.name != reference.name
        note = "the reference's, by import" if theirs else f"own: {_place(ops, op)}"
        yield Check("ops", op, "whose it is", Status.SKIPPED if theirs else Status.PASS, note=note)
    for op, what, name in ASKED:
        yield _ask(ops, dtype, op, what, name)


def _ask(ops: Ops, dtype: torch.dtype, op: str, what: str, name: str) -> Check:
    try:
        with observing(ops) as (watched, seen):
            bind(named(op, name).call(), watched, dtype)()
    except UsageError as error:
        return Check("ops", op, what, Status.UNSUPPORTED, note=str(error))
    if seen.bodies[op] and ops.name != reference.name:
        return Check("ops", op, what, Status.SKIPPED, note="by the reference", kernels=seen.names())
    return Check("ops", op, what, Status.PASS, note="runs", kernels=seen.names())


def _place(ops: Ops, op: str) -> str:
    body = getattr(ops, op)
    return f"{body.__module__.removeprefix('glm_portable.')}.{body.__qualname__}"
