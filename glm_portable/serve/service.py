"""What the endpoints share: the model's parts, the settings, and whether requests are welcome."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from glm_portable.engine.admission import EngineDraining
from glm_portable.errors import UsageError
from glm_portable.serve.chat import ChatTemplate, Format
from glm_portable.serve.errors import (
    ApiError,
    from_usage_error,
    too_many,
    unavailable,
    unhealthy,
)
from glm_portable.serve.exchange import current
from glm_portable.serve.generation import Engine, Generation, Job
from glm_portable.serve.remote.client import EngineClient
from glm_portable.serve.request_metrics import RequestMetrics
from glm_portable.serve.self_test import SelfTest
from glm_portable.serve.settings import ServerSettings
from glm_portable.serve.structured.compiler import Compiler
from glm_portable.serve.tracing import Tracing
from glm_portable.tokenizer import Limit, Tokenizer

COUNTED = 2**20
"""Tokens up to which a text's are listed or counted, were its window smaller than that."""


@dataclass
class Service:
    """A model being served. `running` and `refuse_from` are touched on the event loop alone.

    refuse_from: `time.monotonic()` from which no new requests are taken; the server ends then.
    max_model_len: tokens of prompt and answer together. call_format: how the model writes calls.
    observed: the engine's observer, if it has one. cache_config: what /metrics says of the cache.
    tracing: None if there is none. remote: the engine once more, if it is in another process, and
    engine_pid: that process's number.
    """

    engine: Engine
    chat: ChatTemplate
    tokenizer: Tokenizer
    call_format: Format
    max_model_len: int
    settings: ServerSettings
    observed: RequestMetrics | None = None
    cache_config: Mapping[str, str] = field(default_factory=dict)
    tracing: Tracing | None = None
    remote: EngineClient | None = None
    engine_pid: int | None = None
    refuse_from: float = float("inf")
    running: set[Generation] = field(default_factory=set)
    grammars: Compiler = field(init=False)

    def __post_init__(self) -> None:
        self.grammars = Compiler(self.tokenizer)
        self.self_test = SelfTest.of(self.tokenizer, self.max_model_len)

    @property
    def draining(self) -> bool:
        """Whether the end is near: routers are to send requests elsewhere."""
        return self.refuse_from < float("inf")

    @property
    def prompt_limit(self) -> Limit:
        """Of a prompt that is to be answered.

        Up to two windows it is counted, so that the engine can say by how much it is too long.
        """
        return Limit(
            2 * self.max_model_len,
            f"This model's maximum context length is {self.max_model_len} tokens. However, the "
            "prompt has at least {tokens} tokens; shorten it.",
        )

    @property
    def counted_limit(self) -> Limit:
        """Of a text whose tokens are asked for: they may be far more than the window holds."""
        most = max(COUNTED, self.max_model_len)
        return Limit(
            most,
            f"the text has at least {{tokens}} tokens, but this server lists or counts {most} at "
            "the most; send it in parts.",
        )

    def admit(self) -> None:
        """Raises ApiError when the server takes no more requests: 503, or 429 for now."""
        if time.monotonic() >= self.refuse_from:
            raise _ending()
        self._check_queue()

    def _check_queue(self) -> None:
        most = self.settings.max_queue
        if most is not None and self.engine.stats().waiting >= most:
            message = f"{most} requests are waiting already, this server's limit; send it again."
            raise too_many(message, "queue_full", 1)

    def check_health(self) -> None:
        """Raises ApiError (503) when the server should get no requests.

        An engine that failed repeatedly is still tried when one comes: a good step heals it.
        """
        self.check_draining()
        if not self.engine.stats().healthy:
            raise unhealthy("The engine failed several times in a row.")
        if self.self_test.failure is not None:
            raise unhealthy(self.self_test.failure)

    def check_draining(self) -> None:
        """Raises ApiError (503) when the server is to end, also while it still takes requests."""
        if self.draining:
            raise _ending()

    def model(self, name: str | None) -> str:
        """The name to answer under. Raises ApiError (404) for a model that is not served."""
        names = self.settings.served_model_names
        if name is None or name in names:
            exchange = current()
            if exchange is not None:
                exchange.model = name or names[0]
            return name or names[0]
        raise ApiError(
            404,
            f"The model {name[:100]!r} does not exist; this server has {', '.join(names)}.",
            param="model",
            code="model_not_found",
        )

    def generate(self, jobs: Sequence[Job]) -> Generation:
        """Start the choices of one request. Raises ApiError if the engine refuses one."""
        self._check_queue()  # again: others came while the request was read and rendered
        generation = Generation(
            self.engine,
            jobs,
            self.running,
            self.settings.request_timeout_s,
            self.settings.stream_interval,
        )
        try:
            generation.start()
        except UsageError as error:
            raise from_usage_error(error) from None
        except EngineDraining as error:
            raise unavailable(str(error)) from None
        return generation

    def abort(self) -> None:
        """End every running request with an error its client can see."""
        for generation in self.running:
            generation.abort()


def _ending() -> ApiError:
    return unavailable("The server is shutting down.")
