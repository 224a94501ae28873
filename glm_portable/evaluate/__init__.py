"""Scores a model on the held-out tasks, in this process or behind an OpenAI-compatible URL."""

from glm_portable.evaluate.ask import Answer, Ask, Call, Endpoint
from glm_portable.evaluate.report import Report, Result
from glm_portable.evaluate.run import evaluate
from glm_portable.evaluate.scoring import Score, score

__all__ = ["Answer", "Ask", "Call", "Endpoint", "Report", "Result", "Score", "evaluate", "score"]
