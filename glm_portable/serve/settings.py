"""How the server is set up; every field is a flag of `glm-portable serve`."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from glm_portable.engine.types import SamplingParams
from glm_portable.errors import UsageError


@dataclass(frozen=True)
class ServerSettings:
    """Settings of the HTTP server. Durations are seconds.

    served_model_names: what requests may call the model; the first is what answers call it.
    api_keys: any of them opens every path but those of `middleware.OPEN_PATHS`; none: all are open.
    allowed_origins: web pages (CORS) that may call the server; "*" for all.
    header_timeout_s, body_timeout_s: a client slower than this is disconnected.
    write_timeout_s: so is one that takes nothing of its answer for so long.
    stream_interval: tokens that an answer gathers before it goes on, after the first.
    request_timeout_s: an answer that takes longer ends in an error; None for no limit.
    max_queue: waiting requests above which new ones get 429; None for no limit.
    rate_limit: requests a minute of one API key, or of one address; None for no limit.
    ssl_certfile, ssl_keyfile: PEM files; with them the server speaks HTTPS.
    drain_delay_s: after SIGTERM, how long requests are still taken, while /health is 503 already.
    drain_grace_s: after that, how long running requests may take to finish.
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
    write_timeout_s: float = 60.0
    keep_alive_s: int = 5
    stream_interval: int = 1
    request_timeout_s: float | None = None
    max_queue: int | None = None
    rate_limit: int | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    drain_delay_s: float = 0.0
    drain_grace_s: float = 30.0
    sampling: SamplingParams = SamplingParams()

    def __post_init__(self) -> None:
        if not self.served_model_names or not all(self.served_model_names):
            raise UsageError("the served model name is empty: give at least one name.")
        if not all(self.api_keys):
            raise UsageError("an API key is empty: give a non-empty key, or none to serve openly.")
        if not 0 <= self.port <= 65535:
            raise UsageError(f"port {self.port} is not between 0 and 65535.")
        for name in ("max_body_bytes", "header_timeout_s", "body_timeout_s", "write_timeout_s"):
            self._check_positive(name)
        self._check_positive("stream_interval")
        for name in ("request_timeout_s", "max_queue", "rate_limit"):
            if getattr(self, name) is not None:
                self._check_positive(name)
        if not 0 <= self.drain_delay_s < float("inf"):
            raise UsageError(f"drain_delay_s is {self.drain_delay_s}; it must be 0 or above.")
        self._check_certificate()

    def _check_positive(self, name: str) -> None:
        value = getattr(self, name)
        if not 0 < value < float("inf"):
            raise UsageError(f"{name} is {value}; it must be above 0.")

    def _check_certificate(self) -> None:
        if self.ssl_certfile is None and self.ssl_keyfile is None:
            return
        if self.ssl_certfile is None or self.ssl_keyfile is None:
            raise UsageError("TLS needs both --ssl-certfile and --ssl-keyfile.")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.ssl_certfile, self.ssl_keyfile, password="")
        except ssl.SSLError:
            raise self._no_tls("they are not a PEM certificate and its unencrypted key") from None
        except OSError as error:
            raise self._no_tls(str(error.strerror)) from None

    def _no_tls(self, reason: str) -> UsageError:
        files = f"{self.ssl_certfile} and {self.ssl_keyfile}"
        return UsageError(f"{files} cannot be used for TLS: {reason}.")
