"""`glm-portable bench soak`: minutes of mixed load on a server, and everything that went wrong."""
