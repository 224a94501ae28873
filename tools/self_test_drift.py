"""How far the server's self-test moves by rounding, and by faults: what its bound is chosen from.

    python tools/self_test_drift.py [--dtype bfloat16] [--backend reference]

Prints the drift of the pocket model's log probabilities (serve/self_test.py) among other requests,
and alone with one part of one layer spoilt, and which weight the engine then names; last, how fast
weights are read for that.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue

import torch
from torch import Tensor

from glm_portable import GLM
from glm_portable.digest import digest
from glm_portable.engine.engine import Engine
from glm_portable.engine.types import SamplingParams, TokenLogprob
from glm_portable.serve.self_test import BOUND, PARAMS, TEXT, drift

COMPANY = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--backend", default="reference")
    arguments = parser.parse_args()
    glm = GLM.load(dtype=arguments.dtype, backend=arguments.backend)
    prompt = glm.tokenizer.encode(TEXT)
    with Engine(glm.model, glm.tokenizer, glm.limits(memory_bytes=2**28)) as engine:
        first = measure(engine, prompt, 0)
        examine(engine)
        print(f"{arguments.backend}, {arguments.dtype}; the bound is {BOUND}")
        for others in (0, 1, 3, 7, 15):
            print(f"{drift(first, measure(engine, prompt, others)):8.4f}  {others} other requests")
        for name, tensor, spoil in faults(glm):
            with spoilt(tensor, spoil):
                print(f"{drift(first, measure(engine, prompt, 0)):8.4f}  {name}", end=": ")
                print(examine(engine) or "not noticed")
        print(f"{drift(first, measure(engine, prompt, 0)):8.4f}  mended again", end=": ")
        print(examine(engine) or "all weights as at first")
    weights = torch.ones(2**26)
    print(f"digests of {weights.nbytes >> 20} MiB: {speed(digest, weights):.1f} GB/s, ", end="")
    print(f"a plain sum of float32: {speed(torch.sum, weights):.1f} GB/s")


def measure(engine: Engine, prompt: list[int], others: int) -> tuple[TokenLogprob, ...]:
    company = [(prompt[: 5 + n], COMPANY) for n in range(others)]
    return engine.generate([(prompt, PARAMS), *company])[0].logprobs


def examine(engine: Engine) -> str | None:
    found: SimpleQueue[str | None] = SimpleQueue()
    engine.examine(found.put)
    return found.get()


def speed(read: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """10^9 bytes a second, the best of ten."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        read(x)
        times.append(time.perf_counter() - begin)
    return x.nbytes / min(times) / 1e9


def faults(glm: GLM) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """(what is wrong, the tensor, how it is spoilt)"""
    first, last = glm.model.layers[0], glm.model.layers[-1]
    assert last.moe is not None
    yield "the first layer's o_proj is zero", first.attention.out.data, torch.zeros_like
    yield "the last layer's o_proj is zero", last.attention.out.data, torch.zeros_like
    yield "the last layer's experts' down is zero", last.moe.down.data, torch.zeros_like
    yield "... twice too large", last.moe.down.data, lambda x: x * 2
    yield "... experts in another order", last.moe.down.data, lambda x: x.roll(1, 0)
    yield "... one expert of them zero", last.moe.down.data, lambda x: x * (one_off(x))
    yield "... one bit of them flipped", last.moe.down.data, flipped
    yield "the shared expert's down is zero", last.moe.shared.down.data, torch.zeros_like
    yield "the router's bias is lost", last.moe.bias, torch.zeros_like
    yield "the output head is shifted by a row", glm.model.head.data, lambda x: x.roll(1, 0)
    yield "the final norm is 10 % too large", glm.model.norm, lambda x: x * 1.1


def one_off(x: Tensor) -> Tensor:
    """0 for the first expert, 1 for the others."""
    return (torch.arange(len(x), device=x.device) > 0).to(x.dtype)[:, None, None]


def flipped(x: Tensor) -> Tensor:
    """The lowest bit of the last number."""
    y = x.clone()
    y.view(torch.uint8).view(-1)[-x.itemsize] ^= 1
    return y


@contextmanager
def spoilt(tensor: Tensor, spoil: Callable[[Tensor], Tensor]) -> Iterator[None]:
    whole = tensor.clone()
    tensor.copy_(spoil(whole))
    try:
        yield
    finally:
        tensor.copy_(whole)


if __name__ == "__main__":
    main()
