"""`glm-portable bench host`: what the engine and the server cost beside the model's own time."""
