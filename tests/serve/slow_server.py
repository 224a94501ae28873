"""A server process for the tests of signals: one token, and the rest when stdin says so."""

import sys
import threading

from glm_portable.serve.server import run
from glm_portable.serve.settings import ServerSettings
from tests.serve.fake_engine import FakeEngine, fake_service, says


def main() -> int:
    engine = FakeEngine()
    engine.script = lambda request: says("Hello")[:1]
    service = fake_service(engine, ServerSettings(port=0))

    def on_ready(url: str) -> None:
        print(url, flush=True)
        threading.Thread(target=finish, daemon=True).start()

    def finish() -> None:
        sys.stdin.readline()
        for request in engine.requests:
            request.send(says("")[-1])

    return run(service, on_ready=on_ready)


if __name__ == "__main__":
    sys.exit(main())
