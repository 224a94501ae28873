"""What the endpoints share: the model's parts, the settings, and whether requests are welcome."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from glm_portable.engine.engine import EngineDraining
from glm_portable.errors import UsageError
from glm_portable.serve.chat import ChatTemplate, Format
from glm_portable.serve.errors import ApiError, from_usage_error, unavailable
from glm_portable.serve.generation import Engine, Generation, Job
from glm_portable.serve.mailbox import Mailbox
from glm_portable.serve.settings import ServerSettings
from glm_portable.tokenizer import Tokenizer


@dataclass
class Service:
    """A model being served. `running` and `draining` are touched on the event loop alone.

    max_model_len: tokens of prompt and answer together. call_format: how the model writes calls.
    """

    engine: Engine
    chat: ChatTemplate
    tokenizer: Tokenizer
    call_format: Format
    max_model_len: int
    settings: ServerSettings
    draining: bool = False
    running: set[Generation] = field(default_factory=set)
    _mailbox: Mailbox | None = None

    def admit(self) -> None:
        """Raises ApiError (503) when the server takes no more requests."""
        if self.draining:
            raise unavailable("The server is shutting down.")

    def check_health(self) -> None:
        """Raises ApiError (503) when the server should get no requests.

        An engine that failed repeatedly is still tried when one comes: a good step heals it.
        """
        self.admit()
        if not self.engine.stats().healthy:
            raise ApiError(503, "The engine failed several times in a row.", code="unhealthy")

    def model(self, name: str | None) -> str:
        """The name to answer under. Raises ApiError (404) for a model that is not served."""
        names = self.settings.served_model_names
        if name is None or name in names:
            return name or names[0]
        raise ApiError(
            404,
            f"The model {name[:100]!r} does not exist; this server has {', '.join(names)}.",
            param="model",
            code="model_not_found",
        )

    def generate(self, jobs: Sequence[Job]) -> Generation:
        """Start the choices of one request. Raises ApiError if the engine refuses one."""
        generation = Generation(self.engine, jobs, self.running, self._current_mailbox())
        try:
            generation.start()
        except UsageError as error:
            raise from_usage_error(error) from None
        except EngineDraining as error:
            raise unavailable(str(error)) from None
        return generation

    def _current_mailbox(self) -> Mailbox:
        loop = asyncio.get_running_loop()
        if self._mailbox is None or self._mailbox.loop is not loop:
            self._mailbox = Mailbox(loop)
        return self._mailbox

    def abort(self) -> None:
        """End every running request with an error its client can see."""
        for generation in self.running:
            generation.abort()
