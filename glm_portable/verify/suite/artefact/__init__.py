"""The suite as a folder that needs neither this program nor PyTorch: see `judge.py`."""

from glm_portable.verify.suite.artefact.writer import write

__all__ = ["write"]
