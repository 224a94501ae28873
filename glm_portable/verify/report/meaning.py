"""Why a failure matters, for a reader who runs a server and has not written a kernel."""

import re

from glm_portable.verify.results import Check

SUBJECTS = {
    "linear": "Attention projections, dense layers and the head all go through it: every token is "
    "affected.",
    "experts": "Nine tenths of the weights are in the experts: answers get worse without any "
    "error message.",
    "route": "The router decides which experts see a token: a wrong choice is a different model.",
    "attend": "Attention reads the whole context: faults show as forgotten or mixed-up text.",
    "rope_store": "It writes the keys and values that every later token reads: a fault stays in "
    "the cache.",
    "rms_norm": "It feeds every layer: an error is passed on and amplified.",
    "silu_mul": "It gates every MLP and expert.",
    "head": "The head gives the probabilities that tokens are drawn by.",
    "MTP head": "It drafts tokens: a fault costs speed by rejected drafts, not correctness.",
    "numbers": "The distribution that tokens are drawn from is another: answers differ from those "
    "of the model that was evaluated.",
    "tasks": "Users of one of the two deployments get fewer right answers.",
    "whole model": "This is what a user gets: the layers' errors together.",
}
FINDINGS = (
    (r"infinite|NaN", "One such value spreads to the whole sequence, and often to others that "
     "share its step."),
    (r"slope", "The result is scaled by a constant, which a cosine similarity cannot see: a wrong "
     "or missing scale, or a part counted twice."),
    (r"largest error", "Few values are far off among many right ones: a wrong row, tile edge or "
     "mask."),
    (r"\berror\b.*exceeds", "The result is further from the exact one than rounding explains: "
     "plain PyTorch in the same precision comes closer."),
    (r"unexplained", "Rounding does not explain these choices: look at the precision of the gate "
     "and the bias, and at the order of ties."),
    (r"\bKL\b", "The distribution that tokens are drawn from has moved: answers differ from those "
     "of the model that was evaluated."),
    (r"kernel was seen|fallback|reference ran", "A fallback computes right and proves nothing of "
     "the backend."),
    (r"bit", "The same request gives different answers: caching, evaluation and debugging rely on "
     "repetition."),
)  # fmt: skip
LEVELS = {
    "model": "The layers before and after it hide such a fault from a look at a few answers.",
    "endpoint": "Clients of this server get something else than the model's own template and "
    "tokens say.",
    "faults": "A fault that the suite does not notice could be in a backend that it passes.",
}


def why(check: Check) -> list[str]:
    """What the findings of a check mean, one sentence each; none for one that does not fail."""
    if not check.findings:
        return []
    subject = "layer" if check.subject.startswith("layer ") else check.subject
    about = SUBJECTS.get(subject) or LEVELS.get(check.level)
    found = [about] if about else []
    if check.level in ("ops", "model"):
        said = [next((s for p, s in FINDINGS if re.search(p, text)), "") for text in check.findings]
        found += [sentence for sentence in dict.fromkeys(said) if sentence]
    return found
