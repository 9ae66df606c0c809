"""The operator's rules: how much is kept of streams whose creator does not say.

A rule has a pattern over stream paths (`*` one segment, `**` any number), and the first that
matches holds. It becomes part of the stream when that is created, like a header that was not asked
for: a rule that changes later changes no stream that is there, and matters to no repeated PUT.
"""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from durable_streamsd.core.headers import INTEGER_MAX
from durable_streamsd.subscriptions.patterns import Patterns, parse_pattern
from storage.record import Retention

__all__ = ["RULES_MAX", "RetentionRule", "RetentionRules"]

RULES_MAX = 1_000

Amount = Annotated[int, Meta(ge=1, le=INTEGER_MAX)]


class RetentionRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Of streams whose path matches, the newest bytes, or what was written in the last seconds."""

    pattern: str
    bytes: Amount | None = None
    seconds: Amount | None = None

    def __post_init__(self) -> None:
        parse_pattern(self.pattern)
        if self.bytes is None and self.seconds is None:
            raise ValueError("a rule needs bytes, seconds, or both.")


class RetentionRules:
    """All rules, to be asked for each stream that is created."""

    def __init__(self, rules: Sequence[RetentionRule] = ()) -> None:
        self._retentions = [Retention(rule.bytes, rule.seconds, asked=False) for rule in rules]
        self._patterns: Patterns[int] = Patterns()
        for number, rule in enumerate(rules):
            self._patterns.add(parse_pattern(rule.pattern), number)

    def of(self, path: bytes) -> Retention | None:
        """What the first rule that matches says; in time linear in the path."""
        number = min(self._patterns.match(path), default=None)
        return None if number is None else self._retentions[number]
