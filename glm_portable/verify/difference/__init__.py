"""`glm-portable verify diff`: whether two deployments are the same, with a stated error rate."""
