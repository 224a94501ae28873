"""The engine in a process of its own, so that its thread shares no interpreter with the server's.

`client.EngineClient` is the engine for the server's process; `host.EngineHost` is the server for
the engine's process. Between them is a pair of sockets that only these two have.
"""
