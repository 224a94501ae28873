"""MODEL as a user writes it, made a folder: a local path, or an id on Hugging Face or ModelScope.

    ./my-glm, /models/glm          a checkpoint folder on this machine
    zai-org/GLM-4.5-Air            Hugging Face
    modelscope:ZhipuAI/GLM-4.5-Air ModelScope

Downloads go through the hubs' own libraries, so their caches, tokens, mirrors and offline switches
(HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE, MODELSCOPE_CACHE, ...) work as everywhere else.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub

from glm_portable.errors import UsageError

MODELSCOPE = "modelscope:"

# Weights and text only: no pickles, and no code that a loader could be made to run.
FILES = [
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "quant_model_description*.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
]
SUBFOLDERS = ["*/*"]


def resolve(model: str, revision: str | None = None) -> Path:
    """The folder of a model, downloaded if it is not here yet.

    revision: a branch, tag or commit of the hub's repository; its main branch if None. Raises
    UsageError if the folder does not exist or the hub cannot be reached and holds no cached copy.
    """
    if model.startswith(MODELSCOPE):
        return _download(_modelscope, _checked_id(model.removeprefix(MODELSCOPE)), revision)
    path = os.path.expanduser(model)
    if os.path.isdir(path):
        return Path(path)
    if os.path.exists(path):
        raise UsageError(f"{model} is a file: point at the folder that holds config.json.")
    if model.startswith(("/", "./", "../", "~")) or model in (".", ".."):
        raise UsageError(f"There is no folder {model[:200]}.")
    return _download(_hugging_face, _checked_id(model), revision)


def _checked_id(name: str) -> str:
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII):
        raise UsageError(
            f"{name[:200]!r} is neither a folder nor an id such as zai-org/GLM-4.5-Air "
            f"or {MODELSCOPE}ZhipuAI/GLM-4.5-Air."
        )
    return name


def _download(fetch: Callable[[str, str | None], str], name: str, revision: str | None) -> Path:
    try:
        return Path(fetch(name, revision))
    # The hubs' clients and the HTTP libraries below them raise errors without a common base.
    except Exception as error:
        at = f" (revision {revision})" if revision else ""
        reason = " ".join(str(error).split())[:300]
        raise UsageError(
            f"{name}{at} could not be downloaded and is not complete in the cache: {reason} "
            f"({type(error).__name__})."
        ) from error


def _hugging_face(name: str, revision: str | None) -> str:
    """Falls back to a complete cached copy by itself when the hub cannot be reached."""
    return huggingface_hub.snapshot_download(
        name, revision=revision, allow_patterns=FILES, ignore_patterns=SUBFOLDERS
    )


def _modelscope(name: str, revision: str | None) -> str:
    """ModelScope's library does not fall back to its cache by itself."""
    fetch = _modelscope_download()
    wanted: dict[str, Any] = {
        "revision": revision,
        "allow_patterns": FILES,
        "ignore_patterns": SUBFOLDERS,
    }
    try:
        return fetch(name, **wanted)
    except ConnectionError as error:
        try:
            return fetch(name, **wanted, local_files_only=True)
        except Exception:
            raise error from None


def _modelscope_download() -> Callable[..., str]:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise ImportError("install it with: pip install 'glm-portable[modelscope]'") from error
    download: Callable[..., str] = snapshot_download
    return download
