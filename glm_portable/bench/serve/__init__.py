"""`glm-portable bench serve`: load on a server of the OpenAI API, measured as vLLM's tool does."""
