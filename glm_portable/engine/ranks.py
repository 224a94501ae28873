"""One engine over several ranks: rank 0 tells the others what it is about to compute.

The others repeat every call of the model on their parts of it, in the same order, and so take part
in its exchanges. They sample nothing. What they are told goes through pipes and not through the
collectives, so that an idle server waits in no collective, which would time out or spin.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from multiprocessing.connection import Connection
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from torch import Tensor

from glm_portable.config import ModelConfig
from glm_portable.digest import Digests
from glm_portable.model import Model
from glm_portable.ops import KVCache, Ops, Step

T = TypeVar("T")

ALLOCATE, FORWARD, LOGITS, END = "allocate", "forward", "logits", "end"
MTP_FORWARD, MTP_LOGITS, DIGESTS = "mtp_forward", "mtp_logits", "digests"


class Leader:
    """Rank 0's model, as the engine sees it.

    pipes: to the other ranks, which answer through them only when asked for digests.

    on_failure: called with the error of a computation, and does not return: ranks of which one has
    stopped in the middle of a step would not agree on the next one.
    """

    def __init__(
        self,
        model: Model,
        pipes: Sequence[Connection],
        on_failure: Callable[[Exception], NoReturn],
    ) -> None:
        self._model, self._pipes, self._on_failure = model, pipes, on_failure

    @property
    def config(self) -> ModelConfig:
        return self._model.config

    @property
    def ops(self) -> Ops:
        return self._model.ops

    def allocate(self, pages: int, page_size: int) -> list[KVCache]:
        """On every rank the pages of its own heads."""
        return self._together((ALLOCATE, pages, page_size), self._model.allocate, pages, page_size)

    def forward(self, ids_T: Tensor, step: Step, caches: Sequence[KVCache]) -> Tensor:
        """Hidden states of the step, which every rank has in the end."""
        message = (FORWARD, _on_host(ids_T), _packed(step))
        return self._together(message, self._model.forward, ids_T, step, caches)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        """Of these rows; the others get them first."""

        def compute() -> Tensor:
            return self._model.logits(self._model.parallel.broadcast(hidden_TD.contiguous()))

        return self._together((LOGITS, len(hidden_TD)), compute)

    @property
    def has_mtp(self) -> bool:
        """As the model's."""
        return self._model.has_mtp

    def mtp_forward(
        self, next_ids_T: Tensor, hidden_TD: Tensor, step: Step, caches: Sequence[KVCache]
    ) -> tuple[Tensor, Tensor]:
        """Of these rows; the others get them first."""

        def compute() -> tuple[Tensor, Tensor]:
            hidden = self._model.parallel.broadcast(hidden_TD.contiguous())
            return self._model.mtp_forward(next_ids_T, hidden, step, caches)

        return self._together((MTP_FORWARD, _on_host(next_ids_T), _packed(step)), compute)

    def mtp_logits(self, hidden_TD: Tensor) -> Tensor:
        """As `logits`, of the MTP layer's head."""

        def compute() -> Tensor:
            return self._model.mtp_logits(self._model.parallel.broadcast(hidden_TD.contiguous()))

        return self._together((MTP_LOGITS, len(hidden_TD)), compute)

    def digests(self, part: int) -> Digests:
        """Of all ranks' weights in a part of the model; part p is the same on each."""

        def compute() -> Digests:
            found = [self._model.digests(part), *(pipe.recv() for pipe in self._pipes)]
            return {
                f"{name} on rank {rank}": numbers
                for rank, digests in enumerate(found)
                for name, numbers in digests.items()
            }

        return self._together((DIGESTS, part), compute)

    def _together(self, message: Any, compute: Callable[..., T], *arguments: Any) -> T:
        try:
            for pipe in self._pipes:
                pipe.send(message)
            return compute(*arguments)
        except Exception as error:
            self._on_failure(error)


def follow(model: Model, pipe: Connection) -> None:
    """Another rank's part: do as told until the end, or until rank 0 is gone."""
    caches: list[KVCache] = []
    device, width = model.ops.device, model.config.hidden_size

    def received(rows: int) -> Tensor:
        hidden_TD = torch.empty(rows, width, dtype=model.dtype, device=device)
        return model.parallel.broadcast(hidden_TD)

    with torch.inference_mode():
        while True:
            try:
                kind, *message = pipe.recv()
            except EOFError:
                return
            if kind == ALLOCATE:
                caches = model.allocate(*message)
            elif kind == FORWARD:
                model.forward(_on_device(message[0], device), _unpacked(message[1], device), caches)
            elif kind == LOGITS:
                model.logits(received(message[0]))
            elif kind == MTP_FORWARD:
                ids_T, step = _on_device(message[0], device), _unpacked(message[1], device)
                model.mtp_forward(ids_T, received(len(ids_T)), step, caches)
            elif kind == MTP_LOGITS:
                model.mtp_logits(received(message[0]))
            elif kind == DIGESTS:
                pipe.send(model.digests(*message))
            elif kind == END:
                return
            else:
                raise AssertionError(f"{kind=}")


def _on_host(value: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = value.cpu().numpy()  # a tensor would go as a shared file
    return array


def _on_device(array: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device)


def _packed(step: Step) -> dict[str, Any]:
    values = {field.name: getattr(step, field.name) for field in fields(step)}
    return {name: _on_host(v) if isinstance(v, Tensor) else v for name, v in values.items()}


def _unpacked(values: dict[str, Any], device: torch.device) -> Step:
    def there(value: Any) -> Any:
        return _on_device(value, device) if isinstance(value, np.ndarray) else value

    return Step(**{name: there(value) for name, value in values.items()})
