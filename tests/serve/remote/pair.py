"""An engine behind the wire, in the test's own process: a host on a thread, for a client here."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from socket import socket, socketpair

from glm_portable.engine.engine import Engine
from glm_portable.engine.grammar import Vocabulary
from glm_portable.serve.remote.client import EngineClient
from glm_portable.serve.remote.grammars import Grammars
from glm_portable.serve.remote.host import EngineHost
from glm_portable.serve.request_metrics import RequestMetrics

WAIT_S = 60.0


@contextmanager
def hosted(
    engine: Engine, vocabulary: Callable[[], Vocabulary], observed: RequestMetrics | None = None
) -> Iterator[socket]:
    """The server's end; the host ends when it is closed, at the latest with the block."""
    ours, theirs = socketpair()
    observed = observed or RequestMetrics(engine.limits.max_model_len)
    host = EngineHost(engine, theirs, Grammars(vocabulary), observed)
    thread = threading.Thread(target=host.run, daemon=True)
    thread.start()
    with ours, theirs:
        yield ours
        ours.close()
        thread.join(WAIT_S)
        assert not thread.is_alive()


def client_of(engine: Engine, sock: socket, vocab_size: int) -> EngineClient:
    """observed is its own: what the host's saw comes over the wire."""
    observed = RequestMetrics(engine.limits.max_model_len)
    return EngineClient(sock, engine.limits, vocab_size, engine.stats(), observed)
