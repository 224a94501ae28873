"""`glm-portable bench speculative`: what drafts cost, what they bring, and from when they pay."""
