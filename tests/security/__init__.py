"""Attacks on the doors, as bytes on a socket.

* `wire`: a client that sends exactly what it is told and reads what comes back, strictly.
"""
