"""How do people and programs drive the gateway from a shell? The command `agenticmail-enterprise`.

Every command reads the same settings as the server (`--config`, `AGENTICMAIL_*`), speaks to people in tables and to
programs in JSON (`--json`: one object or array on standard output; an error is one object on standard error), and ends
with 0 for done, 1 for a refusal or a problem found, 2 for a command line that makes no sense. Commands that change
something work on the store through the same services as the API, whether or not a server runs; a running one sees the
change within half a second.

* `app`: the command itself: its sub-commands by name, loaded when they are asked for, and the one place where an error
  becomes a message.
* `common`: the options that commands share, and `House`: settings, store and services opened for one command.
* `output`: results as JSON, as tables, and as plain text where nobody watches; secrets masked.
* `args`: types of arguments (`NAME=VALUE`, files, days).
* `init`, `serve`, `demo`: from nothing to a running gateway. `health`: `check` and `doctor`, over one list of findings
  (`findings`). `settings`: `settings show`, `version`.
* `agents`, `keys`, `upstreams`, `plugins`: what there is, and changing it.
* `calls`, `audit`, `explain`: what happened, whether the record is whole, and why a call is or is not allowed.
"""

from __future__ import annotations


def main() -> None:
    """The entry point of the command."""
    import gc

    gc.disable()  # while modules are loaded nothing is garbage: an eighth of the start; `run` and `serve` switch it on
    from .app import main as run

    run()
