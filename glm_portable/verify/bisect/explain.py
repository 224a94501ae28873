"""What a bisection found, in words for someone who has not written a kernel."""

from glm_portable.verify.bisect.search import Fault

WHY = {
    "linear": "Every token passes through this product: a wrong scale or a coarse sum bends all "
    "layers behind it, and short answers may still read well.",
    "rms_norm": "It sets the size of what a layer sees: a small constant factor here looks like a "
    "badly trained model, not like a fault.",
    "silu_mul": "It gates every MLP and expert: an error here is in all that they say.",
    "rope_store": "It writes the keys and values that all later tokens read: a fault stays in the "
    "cache, and shows as forgotten or misplaced text further on.",
    "attend": "It is how a token sees the others: a fault shows as mixed-up or forgotten context, "
    "and often only for some lengths, batches or page tables.",
    "route": "It decides which experts see a token: a wrong choice is another model, and fluent.",
    "experts": "Nine tenths of the weights are in there: answers get worse without any error "
    "message, often only for batches that load the experts unevenly.",
}
"""Why a wrong op matters, and what kind of failure it gives."""
NUMBERS = {
    "error": "error",
    "allowed": "allowed",
    "slope": "slope",
    "flips_explained": "choices that rounding explains",
    "flips_unexplained": "that it does not",
}
KINDS = {
    "codes": "The numbers are right and the codes beside them are not, so this product reads "
    "something else than every other op does: look at the fused norm or activation before it.",
    "wiring": "Every op gave the right result, so the fault is in the code between them: a missing "
    "or doubled scale, a sum, a shift of tokens, an argument.",
    "state": "No op is wrong by itself, so the fault is in what is kept between them: pages, a "
    "buffer that is used again, something cached from an earlier step or layer.",
}


def headline(fault: Fault, labels: dict[str, str]) -> str:
    """One line: what is wrong, and where."""
    name = labels[fault.who]
    if fault.kind == "op":
        return f"{name} is wrong in {fault.part}: {fault.place} ({fault.op})"
    if fault.kind == "codes":
        return f"{name} is wrong in {fault.part}: {fault.place} ({fault.op})"
    if fault.kind == "wiring":
        return f"the model on {name} is wrong in {fault.part} outside of its ops: {fault.place}"
    return f"{name} is wrong in {fault.part}, and none of its ops is wrong by itself"


def why(fault: Fault) -> list[str]:
    """Why it matters, and what kind of failure it is; one sentence each."""
    found = [WHY[fault.op]] if fault.op in WHY else []
    return found + ([KINDS[fault.kind]] if fault.kind in KINDS else [])


def numbers(fault: Fault) -> str | None:
    """By how much, what is allowed, and the slope; None where no single call shows it."""
    if fault.evidence is None:
        return None
    measures = fault.evidence.judged.measures
    return ", ".join(f"{words} {measures[n]:.5g}" for n, words in NUMBERS.items() if n in measures)
