"""The pocket model's trainer: network, data, optimiser, loop and export."""
