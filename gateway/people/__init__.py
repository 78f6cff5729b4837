"""Who are the people, how do they sign in, and what keeps others out? Everything here is off the hot path.

* `service`: `People`, the parts below put together; one per worker, `runtime.people`.
* `directory`: adding, changing and removing people, with the rules about roles and the last owner.
* `signin`: e-mail, password, code, one-time link -> a session; refreshing it, ending it.
* `tokens`: what is handed out: JWTs (one pinned algorithm, keys by id), refresh tokens, links, cookies.
* `factors`: TOTP as a second factor, recovery codes; `totp`: RFC 6238 itself.
* `tickets`: one-time links for invitations, lost passwords and signing in.
* `throttle`: how often may be tried, by whom, so that guessing is slow and nobody is locked out.
* `who`: which key or person sends a request; `crosssite`: whether a browser was led to send it.
* `company`: what an organisation has set for itself.

Laws:

* A token says who, never what they may do. Person and session are read from the store at every request, so a change of
  role, a removal or a sign-out holds from the next request on, in every worker.
* What opens something is stored as a digest only. Passwords are Argon2id, hashed in a thread.
* One sentence and one amount of work for a wrong password, an unknown address and a suspended person.
"""
