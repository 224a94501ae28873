"""Requests of other APIs as chat requests."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from glm_portable.errors import UsageError
from glm_portable.serve.errors import from_usage_error, from_validation
from glm_portable.serve.fields import CacheSalt, Priority, TemplateOptions
from glm_portable.serve.protocol import ChatRequest, Strict
from glm_portable.serve.structured.formats import Format, text_format


class Extensions(Strict):
    """Fields that are not of the other API, and mean what they mean in a chat."""

    chat_template_kwargs: TemplateOptions | None = None
    priority: Priority | None = None
    cache_salt: CacheSalt | None = None

    def extensions(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in Extensions.model_fields}


class ConvertedRequest(ChatRequest):
    """own_format: where its own API has the answer's format, and the format."""

    own_format: tuple[str, Any] | None = None

    @cached_property
    def format(self) -> Format | None:
        if self.own_format is None:
            return None
        field, value = self.own_format
        return text_format(value, field)


def convert(fields: Callable[[], dict[str, Any]]) -> ConvertedRequest:
    """The chat request of these fields. Raises ApiError, also for what `fields` refuses."""
    try:
        return ConvertedRequest.model_validate(fields())
    except UsageError as error:
        raise from_usage_error(error) from None
    except ValidationError as error:
        raise from_validation(error) from None
