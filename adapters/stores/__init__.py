"""Where are records kept? One module a database, found by the scheme of its URL; each exports `create(url) -> Store`.

Backends
* `memory`: dictionaries and sorted lists; the reference for what the port means, and the store of tests.
* `sqlite`: one file, WAL, one writing and a few reading connections, each on a thread of its own. The default.

Shared parts, so that the next backend is small
* `codec`: a `Shape` is what every backend derives from an `Entity` once: its key fields, their kinds, its indexes;
  and how a record becomes bytes and back, what a key may hold, how a cursor is made and checked.
* `checks`: refuses the same queries and the same writes on every backend, before a driver is asked, and turns writes
  into `Prepared` ones: stamped, encoded, validated.
* `schema`: the `Shape`s that the numbered migrations bring, and what each migration adds.
* `sql`: a `Dialect` and the statements for one table in it.
* `programs`: the conditional writes, appends, prunes and migrations as generators of statements. They do no I/O, so
  that a driver on a thread and a driver on the event loop run the same ones.
* `sqlstore`: the port over a `Driver` (open, close, ping, fetch, transact). Another SQL database adds a `Dialect` where
  it differs and a `Driver`, nothing else; a database without SQL starts from `memory`.

Behaviour around any store, by wrapping and not by inheriting
* `observed`: tells a callback of each operation, its duration and its error code.
* `pending`: which migrations a store has not seen, changing nothing.
* `retried`: asks again when a read finds the store unreachable. Writes are never repeated.

What a backend must hold to is `tests/contract`; how to add one is `docs/storage.md`.
"""
