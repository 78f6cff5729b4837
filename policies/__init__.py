"""May this happen? Decisions, compiled ahead and made synchronously. No HTTP here, no driver, no socket.

* `patterns`: globs over tool ids, compiled once.
* `catalogue`: the tools as one organisation sees them: the built-in index and what its own servers brought.
* `permissions`: what a profile grants: skill, tool, risk and side effect, in one fixed order.
  `PermissionEngine` is public.
* `verdicts`: verdicts made ahead, and the sentences in them.
* `snapshot`: one agent compiled into `tool -> ready verdict and guards`.
* `chain`: the running order on one page: `decide` (synchronous) and `settle` (loads, compiles, asks gates).
* `running`: guards and gates in a row, and what becomes of an answer; everything unsound denies.
* `guards`: where a call comes from and when; `rules`, `limits`: argument rules and rate limits, which come through the
  plugin door like a stranger's.
* `fields`, `operators`: what an argument rule looks at and what it can demand; `addresses`, `expressions`: the strict
  grammar of e-mail addresses, and regular expressions without a worst case.
* `validation`: what a profile must satisfy before it is stored.
* `explain`: every rule that matched, the winner, and the nearest change that would allow the call; `nearest`: one step
  towards it for each code.
* `pluginhost`: finds, configures, provisions and closes plugins; `watchdog`: what breaks a guard that hangs.
* `resilience`: circuit breaker, rate limiters: pure state machines with an injected clock.
* `toolpolicy`: OpenClaw's own allow/deny list from skills.

Laws: a fault on the decision path denies (POLICY_ERROR); whatever can be decided before the call is decided before it.
"""
