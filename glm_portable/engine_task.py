"""What the server's process asks of the engine's at the start, and what it is told; torch-free."""

from dataclasses import dataclass
from typing import Any

from glm_portable.engine.limits import EngineLimits
from glm_portable.engine.stats import EngineStats
from glm_portable.engine.types import TokenLogprob
from glm_portable.serve.logs import LogFormat
from glm_portable.serve.remote.wire import Message


@dataclass(frozen=True)
class EngineTask:
    """A model to load. options: of `GLM.load`. limit_options: of `GLM.limits`.

    ranks, expert_groups: see `processes.start`. self_test: whether to compute its numbers.
    """

    model: str | None
    options: dict[str, Any]
    limit_options: dict[str, Any]
    seed: int
    ranks: int
    expert_groups: int
    self_test: bool
    log_format: LogFormat
    log_level: str


class Ready(Message, tag="ready"):
    """The engine takes requests. folder: of the checkpoint. scores: of the self-test, if any.

    cache: a sentence for a person; cache_config: the same for /metrics. machine: what it runs on.
    """

    name: str
    folder: str
    limits: EngineLimits
    stats: EngineStats
    scores: tuple[TokenLogprob, ...] | None
    cache: str
    cache_config: dict[str, str]
    machine: str


class Refused(Message, tag="refused"):
    """The engine cannot be started: the sentence of a UsageError."""

    sentence: str
