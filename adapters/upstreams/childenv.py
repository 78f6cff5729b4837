"""What a child process may know, and where its program is. Pure look-ups; nothing is started here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from typing import Final

from ...catalog import errors

INHERITED: Final = ("PATH", "HOME", "LANG", "LC_ALL", "TERM", "TMPDIR", "USER", "LOGNAME", "SHELL")
"""All that passes from the gateway's environment to a child. A list of what passes, not of what is held back: a
secret that is added to the gateway's environment tomorrow is held back today."""

DEFAULTS: Final = {"PATH": os.defpath, "LANG": "C.UTF-8"}
"""For a gateway that was itself started without them."""


def child_environment(configured: Mapping[str, str], parent: Mapping[str, str]) -> dict[str, str]:
    """The whole environment of a child. Values that some shells would read as functions (`() {`) do not pass.

    Raises UpstreamRefused for a configured name or value that no process can have.
    """
    env = dict(DEFAULTS)
    for name in INHERITED:
        value = parent.get(name)
        if value is not None and not value.startswith("()"):
            env[name] = value
    for name, value in configured.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise errors.UpstreamRefused(f"The environment variable {name!r} is not valid.", variable=name)
        env[name] = value
    return env


def working_folder(cwd: str) -> str | None:
    """`cwd` itself, or None for the gateway's own. Raises UpstreamRefused when it is not a folder."""
    if not cwd:
        return None
    if "\0" in cwd or not os.path.isdir(cwd):
        raise errors.UpstreamRefused(f"The working folder {cwd!r} does not exist.", cwd=cwd)
    return os.path.abspath(cwd)


def find_program(command: str, *, folder: str | None, path: str) -> str:
    """The absolute path of `command`: looked up in `path`, or, when it has a slash, relative to `folder`.

    Raises UpstreamRefused, in words that say what to mend.
    """
    if not command or "\0" in command:
        raise errors.UpstreamRefused("No command is configured for this upstream.", command=command)
    if os.sep not in command:
        found = shutil.which(command, path=path)
        if found is None:
            raise errors.UpstreamRefused(
                f"The command {command!r} is not on the PATH of the child, or not executable.", command=command
            )
        return os.path.abspath(found)
    candidate = os.path.abspath(os.path.join(folder or "", command))
    if not os.path.isfile(candidate):
        raise errors.UpstreamRefused(f"The command {candidate!r} does not exist.", command=command)
    if not os.access(candidate, os.X_OK):
        raise errors.UpstreamRefused(f"The command {candidate!r} is not executable.", command=command)
    return candidate


def check_arguments(args: tuple[str, ...]) -> None:
    """Raises UpstreamRefused for an argument that no process can have."""
    for place, argument in enumerate(args):
        if "\0" in argument:
            raise errors.UpstreamRefused(f"Argument {place + 1} contains a NUL character.", argument=place + 1)
