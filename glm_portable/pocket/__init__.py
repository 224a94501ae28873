"""The embedded default model: a very small, trained checkpoint of the GLM-4.5 architecture."""

from pathlib import Path

FOLDER = Path(__file__).parent


def path() -> Path:
    """The folder of the checkpoint: weights, configuration, tokenizer and chat template."""
    return FOLDER
