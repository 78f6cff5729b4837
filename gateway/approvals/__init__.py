"""Approve the bytes, run the bytes, once. Held calls from the moment policy asks for a person to the result.

Read in this order: `engine` -> `form` -> `deciding` -> `executor` -> `sweep`.

* `canonical`: RFC 8785. `form`: the held call as it is stored (sealed), shown (everything visible) and compared.
* `book`: policies, grants and notification channels as operators manage them; `who`: who decides, and with which role.
* `deciding`: what a decision makes of an approval; pure functions, no store.
* `engine`: `ApprovalEngine`, the whole of it as a library: hold, decide, wait, read.
* `executor`: sends an approved call exactly once: conditional claim, lease, fence, policy and pin checked again.
* `sweep`: what falls due: escalations, expiries, executions that a dead worker left, repeats that no longer replay.
* `notify`: the outbox: signed webhooks, Slack-compatible messages, e-mail. `grants`: standing permissions.
* `parked`: how the agent gets its result; the doors use it.

Two laws. What may have been sent is never sent again: at worst an approval ends as `unknown`, and says so. Nothing is
kept in memory that a restart would lose: all due-times are in the store, and any worker may act on them.
"""
