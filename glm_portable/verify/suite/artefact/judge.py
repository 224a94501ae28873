"""Judge results against this suite: python judge.py SUITE OUTPUTS [CASE ...]

OUTPUTS holds a file for each case, <case>.safetensors, with what SUITE/<case>/case.json lists under
"outputs", in any floating type, computed from SUITE/<case>/inputs.safetensors. Needs numpy, and
reader.py beside it. Exit code 1: a case fails.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, Any]


def measure(ours: Any, exact: Any, eps: float) -> dict[str, float]:
    a, e = (x.astype("f8").reshape(-1, x.shape[-1]) for x in (ours, exact))
    both = np.isfinite(a) & np.isfinite(e)
    same = np.array_equal(np.where(both, 0, a), np.where(both, 0, e), equal_nan=True)
    a, e = np.where(both, a, 0), np.where(both, e, 0)
    off, power = abs(a - e), max((e * e).sum(), 2.0**-1022)
    rms = np.sqrt((e * e).sum(-1, keepdims=True) / np.maximum(both.sum(-1, keepdims=True), 1))
    unit = eps * 2 ** np.floor(np.log2(np.maximum(np.maximum(abs(e), rms), 2.0**-126)))
    return {
        "nonfinite": float(not same), "error": np.sqrt((off * off).sum() / power),
        "slope": abs(((a - e) * e).sum() / power), "ulps": (off / unit).max(initial=0),
        "tail": off.max(initial=0) / np.sqrt(power / max(both.sum(), 1)),
    }  # fmt: skip


def divergence(logits: Any, exact: Arrays) -> dict[str, float]:
    """Mean KL over the likeliest tokens and all others together."""
    x = logits.astype("f8") - logits.max(-1, keepdims=True)
    x -= np.log(np.exp(x).sum(-1, keepdims=True))
    x, y = np.take_along_axis(x, exact["ids"], -1), exact["logprobs"].astype("f8")
    p, q = (np.maximum(1 - np.exp(v).sum(-1), 1e-12) for v in (y, x))
    return {"kl": ((np.exp(y) * (y - x)).sum(-1) + p * np.log(p / q)).mean()}


def judge(case: dict[str, Any], ours: Arrays, exact: Arrays) -> list[str]:
    if missing := [name for name in case["outputs"] if name not in ours]:
        return [f"{', '.join(missing)}: missing"]
    rows = exact["judged"] > 0 if "judged" in exact else slice(None)
    if case["subject"] == "route":  # the order of choice is free, but not of equal scores
        tied = case["exact"] and not np.array_equal(ours["experts"], exact["experts"])
        by = [np.argsort(t["experts"], -1) for t in (ours, exact)]
        ours, exact = (
            {name: np.take_along_axis(t[name], order, -1) for name in ("experts", "weights")}
            for t, order in zip((ours, exact), by, strict=True)
        )
        if tied or not np.array_equal(ours["experts"][rows], exact["experts"][rows]):
            return ["experts: others are chosen"]
    wrong = []
    for name, about in case["outputs"].items():
        if name == "logits":
            found = divergence(ours[name], exact)
        elif ours[name].shape != exact[name].shape:
            return [f"{name}: the shape is {ours[name].shape}, not {exact[name].shape}"]
        else:
            found = measure(ours[name][rows], exact[name][rows], about.get("eps", 1))
        wrong += [
            f"{name}: {what} {found[what]:.3g} exceeds {limit:.3g}"
            for what, limit in about.get("limits", {}).items()
            if not found[what] <= limit
        ]
    return wrong


def main(suite: str, outputs: str, *only: str) -> int:
    from reader import read  # type: ignore[import-not-found]  # the file beside this one

    failed, cases = 0, only or json.loads((Path(suite) / "index.json").read_text())["cases"]
    for name in cases:
        place, results = Path(suite) / name, Path(outputs) / f"{name}.safetensors"
        case, wrong = json.loads((place / "case.json").read_text()), ["no results"]
        if results.exists():
            wrong = judge(case, read(results), read(place / "expected.safetensors"))
        failed += bool(wrong)
        print(f"{'FAIL' if wrong else 'pass'} {name}", *wrong, sep="\n     ")
    print(f"{failed} of {len(cases)} cases fail")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
