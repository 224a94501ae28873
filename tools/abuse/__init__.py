"""Requests that no client should send, and whether the server stays a server: see __main__."""
