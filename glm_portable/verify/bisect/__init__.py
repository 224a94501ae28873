"""Where two backends part: the first layer and op."""
