"""The page at / to chat with the model: static files that load nothing from anywhere else.

The page shows what a model wrote, which may be hostile, as text alone. Should something slip
through, its content security policy lets no other script run and nothing leave for another host.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import FastAPI, Request, Response

FILES = Path(__file__).parent / "web"
_START = "index.html"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def _paths() -> dict[str, Path]:
    """Where each file is found: the page at / and the rest under /web."""
    files = [path for path in FILES.iterdir() if path.suffix in _TYPES]
    return {"/" if path.name == _START else f"/web/{path.name}": path for path in files}


PATHS = frozenset(_paths())
"""Need no API key: the page asks for one when the API does."""


def add_page(app: FastAPI) -> None:
    """Serve the page and its files; they are read once."""
    for path, file in _paths().items():
        app.add_route(path, _sender(file.read_bytes(), _TYPES[file.suffix]), ["GET"])


def _sender(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return send
