"""The server, as the engine's process has it."""

import logging
import threading
from dataclasses import dataclass
from socket import socket

from glm_portable.engine.engine import Engine, EngineDraining
from glm_portable.engine.grammar import Grammar, GrammarError
from glm_portable.engine.types import Delta
from glm_portable.errors import UsageError
from glm_portable.serve.remote.grammars import Grammars
from glm_portable.serve.remote.outbox import Outbox
from glm_portable.serve.remote.wire import (
    Cancel,
    Deltas,
    Examine,
    Examined,
    Report,
    Submit,
    ToEngine,
    Unpacker,
    WireError,
    pack,
)
from glm_portable.serve.request_metrics import RequestMetrics

log = logging.getLogger(__name__)

_READ_BYTES = 2**18
_FAILED = "The server failed on this request; its log has the reason."
_TOO_LARGE = "What was asked for is too large to be sent."


@dataclass
class _Running:
    """A request that has not ended. request_id: the engine's, once it has it."""

    request_id: str | None = None
    cancelled: bool = False


class EngineHost:
    """Does what the server's process asks of an engine, until that closes its end.

    The deltas of a step go in one message, written by the engine's thread when the step is over.
    """

    def __init__(
        self, engine: Engine, sock: socket, grammars: Grammars, observed: RequestMetrics
    ) -> None:
        """observed: the engine's observer."""
        self._engine, self._sock, self._grammars = engine, sock, grammars
        self._observed, self._outbox = observed, Outbox(sock)
        # Those that the engine's thread has yet to send, touched by it alone.
        self._numbers: list[int] = []
        self._deltas: list[Delta] = []
        self._running: dict[int, _Running] = {}
        self._beginning = threading.Lock()  # a request either begins or is cancelled before
        self._received = 0
        self._sending = threading.RLock()  # so that the last numbers that are sent are the last
        engine.after_step = self._flush

    def run(self) -> None:
        """Until the other side has gone."""
        unpacker = Unpacker(ToEngine)
        while data := self._read():
            for message in unpacker.feed(data):
                self._handle(message)

    def _read(self) -> bytes:
        try:
            return self._sock.recv(_READ_BYTES)
        except ConnectionResetError:  # it left without reading all
            return b""

    def _handle(self, message: ToEngine) -> None:
        if isinstance(message, Submit):
            self._submit(message)
        elif isinstance(message, Cancel):
            self._cancel(message.number)
        elif isinstance(message, Examine):
            self._engine.examine(lambda fault: self._outbox.send(pack(Examined(fault))))
        else:
            self._outbox.send(pack(Report(self._observed.state)))

    def _submit(self, message: Submit) -> None:
        running = self._running[message.number] = _Running()
        text = message.grammar
        grammar = None if text is None else self._grammars.find(text)
        if text is None or grammar is not None:
            self._begin(message, running, grammar)
        else:  # elsewhere: what comes next does not wait for it
            self._grammars.compile(text, lambda found: self._begin(message, running, found))

    def _begin(
        self, message: Submit, running: _Running, grammar: Grammar | GrammarError | None
    ) -> None:
        number = message.number

        def on_delta(delta: Delta) -> None:
            self._numbers.append(number)
            self._deltas.append(delta)
            if delta.finish_reason is not None:
                self._running.pop(number, None)

        try:
            with self._beginning:
                self._received += 1
                if isinstance(grammar, GrammarError):
                    raise UsageError(f"The format asked for {grammar}.")
                if not running.cancelled:
                    running.request_id = self._engine.submit(
                        message.prompt_ids,
                        message.sampling(grammar),
                        on_delta,
                        name=message.name,
                        priority=message.priority,
                        cache_salt=message.salt,
                    )
        except (UsageError, EngineDraining) as error:
            # The client has checked the request, so this is for what it cannot know.
            log.warning("request %s was refused: %s", message.name or number, error)
            self._refuse(number, str(error))
        except Exception:
            log.exception("request %s could not be begun", message.name or number)
            self._refuse(number, _FAILED)

    def _refuse(self, number: int, sentence: str) -> None:
        self._running.pop(number, None)
        self._send([number], [Delta(finish_reason="error", error=sentence)])

    def _cancel(self, number: int) -> None:
        with self._beginning:
            running = self._running.pop(number, None)
            if running is not None:
                running.cancelled = True
                if running.request_id is not None:
                    self._engine.cancel(running.request_id)

    def _flush(self) -> None:
        """On the engine's thread."""
        numbers, deltas = self._numbers, self._deltas
        self._numbers, self._deltas = [], []
        self._send(numbers, deltas)

    def _send(self, numbers: list[int], deltas: list[Delta]) -> None:
        with self._sending:
            stats = self._engine.stats()
            received = self._received  # last: better to count a request late than twice
            try:
                self._outbox.send(pack(Deltas(received, stats, numbers, deltas)))
            except WireError:
                if len(deltas) > 1:
                    for number, delta in zip(numbers, deltas, strict=True):
                        self._send([number], [delta])
                else:
                    self._send(numbers, [Delta(finish_reason="error", error=_TOO_LARGE)])
                    self._cancel(*numbers)
