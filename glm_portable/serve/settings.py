"""How the server is set up; every field is a flag of `glm-portable serve`."""

from dataclasses import dataclass

from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the HTTP server. Durations are seconds.

    served_model_names: what requests may call the model; the first is what answers call it.
    api_keys: any of them opens every path but the page at /, /health, /version and /openapi.json;
    none: all are open.
    allowed_origins: web pages (CORS) that may call the server; "*" for all.
    header_timeout_s, body_timeout_s: a client slower than this is disconnected.
    drain_grace_s: after SIGTERM, how long running requests may take to finish.
    sampling: for what a request leaves out (a checkpoint's generation_config.json).
    """

    host: str = "127.0.0.1"
    port: int = 8000
    served_model_names: tuple[str, ...] = ("glm-portable",)
    api_keys: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    keep_alive_s: int = 5
    drain_grace_s: float = 30.0
    sampling: SamplingParams = SamplingParams()

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise UsageError("the served model name is empty: give at least one name.")
        if not all(self.api_keys):
            raise UsageError("an API key is empty: give a non-empty key, or none to serve openly.")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is not between 0 and 65535.")
