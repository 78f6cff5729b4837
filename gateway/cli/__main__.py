"""`python -m agenticmail_enterprise.gateway.cli`: the command, where it is not on the path."""

from __future__ import annotations

from . import main

if __name__ == "__main__":
    main()
