"""Jinja as transformers renders chat templates, with bounds.

A checkpoint's template is a program from outside: it runs in jinja's immutable sandbox (no
attributes of Python's internals, no changes to what it is given) and its output is bounded. It is
set when the server starts; a request cannot bring its own.
"""

import json
import math
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from glm_portable.errors import UsageError

RENDERED_LIMIT = 32 * 2**20
"""Characters. No window holds more: 202,752 tokens of 128 spaces are 26 million."""

RENDER_S = 10.0
"""Seconds after which rendering is given up; a window of a million characters takes one."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, in which no short expression becomes a huge value."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "*" and not numbers and _product(left, right) > RENDERED_LIMIT:
            raise jinja2.TemplateError("it repeats a text too often")
        if operator == "**" and not (numbers and abs(left) <= 1000 and abs(right) <= 10):
            raise jinja2.TemplateError("it raises to a power above 10, which is not allowed")
        if operator == "%" and not numbers:
            raise jinja2.TemplateError("it formats with %, which is not allowed")
        return super().call_binop(context, operator, left, right)


def _product(left: Any, right: Any) -> int:
    """How long a repeated sequence is; the count may stand on either side."""
    sizes = (value if isinstance(value, int) else len(value) for value in (left, right))
    return math.prod(sizes)


def compile_template(source: str, name: str) -> jinja2.Template:
    """Compile a chat template; `name` is its file, for errors. Raises UsageError on bad syntax."""
    environment = _Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(
            f"{name}, line {error.lineno}: not a valid chat template: {error.message}."
        ) from None


def render(template: jinja2.Template, variables: Mapping[str, Any]) -> str:
    """The template's text. Raises UsageError with the reason if it refuses or fails."""
    parts, size = [], 0
    deadline = time.monotonic() + RENDER_S
    try:
        for part in template.generate(variables):
            size += len(part)
            if time.monotonic() > deadline:
                raise UsageError(f"the chat template took more than {RENDER_S:g} seconds.")
            if size > RENDERED_LIMIT:
                raise UsageError(f"the chat template wrote more than {RENDERED_LIMIT} characters.")
            parts.append(part)
    except UsageError:
        raise
    except jinja2.TemplateError as error:
        raise UsageError(f"the chat template refused the request: {error.message}") from None
    except Exception as error:  # a template can raise whatever Python can
        # Only the kind: the text of Python's errors can show what is not a client's business.
        kind = type(error).__name__
        raise UsageError(f"the chat template failed on this request ({kind}).") from None
    return "".join(parts)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja's HTML escapes, with the parameters that transformers offers."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)
