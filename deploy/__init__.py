"""How does an agent come to run, and stay running? Issue 5 brings the targets; the floor and its place stand now.

Rules of the floor: imports only `policies` and `catalog`; what it generates is data first (a mapping of path to
content), written to disk or sent to a target only afterwards.
"""
