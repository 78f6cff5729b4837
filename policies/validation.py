"""What a profile must satisfy before it is stored, beyond its types: everything in it can be compiled.

A profile that got into the store regardless is denied with POLICY_ERROR where it cannot be compiled.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ..catalog.errors import FieldError
from ..catalog.profiles import Profile
from .guards import networks, zone
from .rules import broken


def validate_profile(profile: Profile) -> list[FieldError]:
    """Every problem with the profile as (JSON Pointer into it, machine code, sentence). Empty: it can be compiled."""
    return [*_argument_rules(profile), *_schedule(profile), *_addresses(profile)]


def _argument_rules(profile: Profile) -> Iterator[FieldError]:
    seen = Counter(rule.name for rule in profile.argument_rules)
    for at, rule in enumerate(profile.argument_rules):
        problem = broken(rule)
        if problem is not None:
            part = "field" if problem.startswith("the field") else "values"
            yield f"/argument_rules/{at}/{part}", "INVALID_RULE", f"{problem[0].upper()}{problem[1:]}."
        if not rule.tools:
            yield f"/argument_rules/{at}/tools", "REQUIRED", 'A rule names the tools it is about; "*" means all.'
        if seen[rule.name] > 1:
            yield f"/argument_rules/{at}/name", "DUPLICATE", "Another rule of this profile has the same name."


def _schedule(profile: Profile) -> Iterator[FieldError]:
    for at, window in enumerate(profile.schedule):
        try:
            zone(window.timezone)
        except ValueError as error:
            yield f"/schedule/{at}/timezone", "INVALID_TIMEZONE", f"{error}."
        if window.start == window.end:
            yield f"/schedule/{at}/end", "EMPTY_WINDOW", "The window is empty; a whole day is 00:00 to 24:00."
        if not window.days:
            yield f"/schedule/{at}/days", "EMPTY_WINDOW", "The window names no day."


def _addresses(profile: Profile) -> Iterator[FieldError]:
    for at, text in enumerate(profile.allowed_ips):
        try:
            networks((text,))
        except ValueError:
            sentence = "This is neither an IP address nor a network such as 10.0.0.0/8 (without host bits)."
            yield f"/allowed_ips/{at}", "INVALID_ADDRESS", sentence
