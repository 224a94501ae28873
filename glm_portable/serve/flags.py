"""The options of the HTTP server on the command line, as its settings."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from glm_portable.errors import UsageError
from glm_portable.options import json_object
from glm_portable.serve.chat import template_variables
from glm_portable.serve.settings import ServerSettings


def take_settings(options: dict[str, Any]) -> ServerSettings:
    """Take what is the server's out of `options`. Raises UsageError.

    served_model_names is left at its default if none is given.
    """
    names = tuple(options.pop("served_model_name"))
    file = options.pop("api_key_file")
    keys = (*options.pop("api_key"), *(() if file is None else _keys(file)))
    return ServerSettings(
        host=options.pop("host"),
        port=options.pop("port"),
        api_keys=keys,
        allowed_origins=_origins(options.pop("allowed_origins")),
        ssl_certfile=options.pop("ssl_certfile"),
        ssl_keyfile=options.pop("ssl_keyfile"),
        stream_interval=options.pop("stream_interval"),
        request_timeout_s=options.pop("request_timeout"),
        max_queue=options.pop("max_queue"),
        rate_limit=options.pop("rate_limit"),
        max_body_bytes=options.pop("max_body_size"),
        write_timeout_s=options.pop("write_timeout"),
        drain_delay_s=options.pop("drain_delay"),
        drain_grace_s=options.pop("drain_grace"),
        served_model_names=names or ServerSettings.served_model_names,
    )


def _keys(file: Path) -> list[str]:
    """One key a line; empty lines and those that start with # do not count."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--api-key-file {file} cannot be read: {error}.") from None
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:  # an open server is not what was meant
        raise UsageError(f"--api-key-file {file} holds no key; write one a line.")
    return keys


def template_defaults(given: str | Mapping[str, Any] | None) -> dict[str, bool]:
    """The template variables of --default-chat-template-kwargs. Raises UsageError."""
    flag = "--default-chat-template-kwargs"
    read = json_object(flag, given, {"enable_thinking": False})
    try:
        return template_variables(read)
    except UsageError as error:
        raise UsageError(f"{flag}: {str(error).removeprefix('chat_template_kwargs: ')}") from None


def _origins(given: Iterable[str]) -> tuple[str, ...]:
    """Each value is an origin, or several as vLLM has them: '["https://a.example"]'."""
    origins: list[str] = []
    for value in given:
        if not value.startswith("["):
            origins.append(value)
            continue
        try:
            listed = json.loads(value)
        except ValueError:
            listed = None
        if not isinstance(listed, list) or not all(isinstance(item, str) for item in listed):
            raise UsageError(
                f"--allowed-origins {value} is not a JSON list of strings; name one origin a flag."
            )
        origins += listed
    return tuple(origins)
