"""Synthetic chats with known right answers: the pocket model's training data and its examination.

`generate` draws whole chats for training; `cases` draws held-out questions of one skill. Both are
deterministic: the same seed, index and split give the same chat, whatever was drawn before.
"""

from glm_portable.tasks.chat import Chat, Message, Tool
from glm_portable.tasks.draw import Split
from glm_portable.tasks.heldout import SKILLS, Case, cases
from glm_portable.tasks.mixture import MIX, generate

__all__ = ["MIX", "SKILLS", "Case", "Chat", "Message", "Split", "Tool", "cases", "generate"]
