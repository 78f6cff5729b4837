"""What exists? The ground floor: types, facts and ports. Imports nothing of ours from above.

* `errors`: every refusal, one class each, with its code and HTTP status.
* `ids`: time-ordered ids with a prefix that names the kind.
* `profiles`: a permission profile as data.
* `records`: what is stored, with indexes and migrations; `store`: the port it is stored behind.
* `approvals`: what is stored of held calls, their policies, grants and notifications.
* `calls`: one call on its way through, and the verdict on it.
* `plugins`: the ports of guards, gates and observers.
* `tools/`: the tool catalog as typed data; `skills`, `presets`: what groups and grants them.

Rules of the floor: no I/O, no clock but in `ids`, no settings. A fact (a limit, a name, a default) stands here once
and is imported everywhere else.
"""
