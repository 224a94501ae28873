"""Backends with one fault, for tests of what finds it."""

from collections.abc import Callable
from typing import Any

import torch

from glm_portable import ops

REFERENCE = ops.load("reference")


class Faulty:
    """The reference with one op replaced; its body gets the number of the call first."""

    name = "faulty"
    device = torch.device("cpu")

    def __init__(self, op: str, body: Callable[..., Any]) -> None:
        self._op, self._body, self.calls = op, body, 0

    def __getattr__(self, name: str) -> Any:
        if name != self._op:
            return getattr(REFERENCE, name)

        def call(*arguments: Any) -> Any:
            self.calls += 1
            return self._body(self.calls - 1, *arguments)

        return call
