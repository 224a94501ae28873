"""Reports as the levels of `verify` make them, small, with every kind of check and hostile text."""

import math

from glm_portable.verify.results import Check, Report, Status

HOSTILE = "</script><script>alert(1)</script><img src=x onerror='alert(2)'>&\"]]>\x1b[31m\x00\ud800"
ABOUT = {
    "backend": "virtual",
    "chip": "gfx942 <simulated> | `x`",
    "driver": "6.14",
    "torch": "2.13.0",
    "date": "2026-11-26",
}


def op(name: str, error: float = 0.004, allowed: float = 0.01, subject: str = "linear") -> Check:
    """A case of an op, which passes if its error is allowed."""
    wrong = not error <= allowed
    return Check(
        "ops", subject, name,
        Status.FAIL if wrong else Status.PASS,
        (f"error {error:.3g} exceeds {allowed:.3g} (2 times plain PyTorch's)",) if wrong else (),
        {"error": error, "allowed": allowed, "slope": 1.001},
        kernels={"grouped_gemm": 2},
        seconds=0.25,
    )  # fmt: skip


def layer(index: int, explained: int = 0, unexplained: int = 0) -> Check:
    found = (f"layer {index}: {unexplained} of 20 tokens go to other experts unexplained",)
    return Check(
        "model", f"layer {index}", "20 tokens",
        Status.FAIL if unexplained else Status.PASS,
        found if unexplained else (),
        {"error": 0.002, "allowed": 0.004, "flips_explained": float(explained),
         "flips_unexplained": float(unexplained)},
        kernels={"attend": 1},
    )  # fmt: skip


def head(kl: tuple[float, ...] = (1e-4, 0.0, 3e-3, math.nan, math.inf)) -> Check:
    measures = {"error": 0.003, "allowed": 0.005, "kl_mean": 1e-3, "kl_max": 3e-3}
    plain = tuple(value / 2 for value in kl)
    return Check(
        "model", "head", "20 tokens", Status.PASS, (), measures, {"kl": kl, "plain_kl": plain}
    )


UNSUPPORTED = Check("ops", "attend", "fp8 cache", Status.UNSUPPORTED, note="No [fp8] cache here.")
SKIPPED = Check("ops", "attend", "128k", Status.SKIPPED, note="Needs 40 GB; 24 GB are here.")


def hostile() -> Check:
    return Check("endpoint", "template", "tools", Status.FAIL, (f"the answer was {HOSTILE}",))


def mixed() -> Report:
    """Every status, NaN and infinite numbers, several levels, text of an attacker."""
    checks = [
        *(op(f"{tokens} tokens") for tokens in range(1, 9)),
        op("outliers", math.nan),
        op("zeros", 0.0, 0.0, "silu_mul"),
        op("overflow", math.inf, subject="silu_mul"),
        UNSUPPORTED,
        SKIPPED,
        *(layer(i, explained=i % 3) for i in range(6)),
        layer(6, 1, 4),
        head(),
        hostile(),
    ]
    return Report("ops and model", ABOUT, checks)


def clean() -> Report:
    return Report("ops", ABOUT, [op("one token"), op("many", 0.009), layer(0), SKIPPED])
