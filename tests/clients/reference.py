"""What the model itself says, without a server: runs in the server's environment.

    python tests/clients/reference.py < requests.json

Reads a list of [context, continuation] and prints for each the log probability of the continuation,
summed over its tokens, and whether greedy decoding would have written it.
"""

import json
import sys

from glm_portable.glm import GLM


def score(glm: GLM, context: str, continuation: str) -> tuple[float, bool]:
    whole = glm.tokenizer.encode_template(context + continuation)
    start = len(glm.tokenizer.encode_template(context))
    logprobs = glm.logits(whole).double().log_softmax(-1)
    steps = range(start, len(whole))
    total = sum(float(logprobs[i - 1, whole[i]]) for i in steps)
    return total, all(int(logprobs[i - 1].argmax()) == whole[i] for i in steps)


def main() -> None:
    glm = GLM.load(backend="cpu", dtype="float32")
    print(json.dumps([score(glm, *pair) for pair in json.load(sys.stdin)]))


if __name__ == "__main__":
    main()
