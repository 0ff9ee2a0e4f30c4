"""The decision table of notes/store.md, section 2, as a plain model: no SQL, none of our own code.

It is told what happens and says what must follow: the verdict of each ask, the bytes of each
replay, the state of each call and of each claim, and until when a claim protects.
"""

from dataclasses import dataclass, field

SECOND_US = 1_000_000

DONE, UNKNOWN, NOT_SENT, PENDING = "done", "unknown", "not_sent", "pending"


@dataclass(frozen=True, slots=True)
class Rule:
    """A tool's key rule, as the policy says it."""

    missing: str = "derive"
    same_body: str = "replay"
    same_body_seconds: int = 600
    keep_seconds: int = 86_400
    per: str = "run"
    unauthorized: str = "store"


@dataclass(frozen=True, slots=True)
class Asked:
    """One write or read. `body` stands for its fingerprint."""

    name: str
    tool: str
    body: str
    key: str | None
    run: str
    tenant: str
    worker: str = ""
    is_write: bool = True
    may_wait: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How an exchange went. `kept` is whether its answer is short enough to be kept."""

    status: int | None = 200
    sent: bool = True
    complete: bool = True
    kept: bool = True


@dataclass(frozen=True, slots=True)
class Told:
    """`what` is allow, replay or the code of a refusal; `of` the call whose claim it met; `answer`
    status and body of a replay."""

    what: str
    of: str = ""
    answer: tuple[int, bytes] | None = None


@dataclass(slots=True)
class Claim:
    """It keeps the rule under which it was taken; one whose time is over is there until it is
    reaped, or its key is used again. `aliases` are the other keys that were answered through it,
    and until when each protects; `retired` is one that is there for these alone."""

    asked: Asked
    rule: Rule
    created_us: int
    used_us: int
    state: str = PENDING
    answer: tuple[int, bytes] | None = None
    aliases: dict[str, int] = field(default_factory=dict)
    retired: bool = False


@dataclass(slots=True)
class Model:
    """`rows` has the state of each call in the record; `open` those that have not ended."""

    rule: Rule
    rows: dict[str, str] = field(default_factory=dict)
    open: dict[str, Asked] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)

    # What happens

    def ask(self, asked: Asked, now_us: int) -> Told:
        told, claim, by_key = self._judged(asked, now_us)
        if told.what == "in_flight" and asked.may_wait:
            return told  # the gate waits; nothing is written
        if told.what == "allow":
            self.rows[asked.name] = PENDING
            self.open[asked.name] = asked
            if self._claims(asked):
                self.claims.append(Claim(asked, self.rule, now_us, now_us))
            return told
        self.rows[asked.name] = "replayed" if told.what == "replay" else "refused"
        if claim and told.what != "key_reused" and not (by_key and asked.key is not None):
            if told.what in ("replay", "done_but_not_stored"):
                claim.used_us = now_us  # it is the body that was met
            if asked.key is not None:
                claim.aliases[asked.key] = now_us + self.rule.keep_seconds * SECOND_US
        return told

    def settle(self, name: str, end: Ended, now_us: int) -> bool:
        if name not in self.open:
            return False
        asked = self.open.pop(name)
        state, claim_is = self._outcome(asked, end)
        self.rows[name] = state
        claim = self._of(name)
        if claim is None:
            return True
        if claim_is == "released":
            self.claims.remove(claim)
            return True
        claim.state, claim.used_us = claim_is, now_us
        answers = end.complete and end.kept and end.status is not None
        if answers and (claim_is == DONE or (end.status or 0) >= 500):
            claim.answer = (end.status or 0, answer_of(name))
        return True

    def lost(self, workers: set[str]) -> None:
        """What these held may have happened."""
        for name in [name for name, asked in self.open.items() if asked.worker in workers]:
            del self.open[name]
            self.rows[name] = UNKNOWN
            claim = self._of(name)
            if claim is not None:
                claim.state = UNKNOWN

    def resolve(self, name: str, state: str, now_us: int) -> bool:
        """A person's word; False where there is nothing to say."""
        if self.rows.get(name) != UNKNOWN:
            return False
        self.rows[name] = state
        claim = self._of(name)
        if claim is not None and claim.state == UNKNOWN:
            if state == NOT_SENT:
                self.claims.remove(claim)
            else:
                claim.state, claim.used_us, claim.answer = DONE, now_us, None
        return True

    def reap(self, now_us: int) -> None:
        self.claims = [one for one in self.claims if self._protects(one, now_us)]

    def standing(self, now_us: int) -> dict[str, tuple[str, int | None]]:
        """The claims that protect now, by call: their state, and until when."""
        return {
            one.asked.name: (one.state, self.until_us(one) if one.state == DONE else None)
            for one in self.claims
            if self._protects(one, now_us)
        }

    def until_us(self, claim: Claim) -> int:
        """The last moment for which it stands, for any of its keys or its body."""
        return max(self.own_until_us(claim), *claim.aliases.values(), 0)

    def own_until_us(self, claim: Claim) -> int:
        keep_seconds = claim.rule.keep_seconds if claim.asked.key is not None else 0
        by_key = claim.created_us + keep_seconds * SECOND_US
        return max(by_key, self.body_until_us(claim))

    def body_until_us(self, claim: Claim) -> int:
        return claim.used_us + claim.rule.same_body_seconds * SECOND_US

    # The table

    def _judged(self, asked: Asked, now_us: int) -> tuple[Told, Claim | None, bool]:
        """What it is told, the claim that it meets, and whether it is its key that does."""
        if not asked.is_write:
            return Told("allow"), None, False
        if asked.key is None and self.rule.missing == "require":
            return Told("key_required"), None, False
        claim, by_key = self._by_key(asked, now_us) if self._claims(asked) else None, True
        if claim is None and self._claims(asked):
            claim, by_key = self._by_body(asked, now_us), False
        if claim is None:
            return Told("allow"), None, False
        of = claim.asked.name
        if claim.asked.body != asked.body:
            told = Told("key_reused", of)
        elif claim.state == PENDING:
            told = Told("in_flight", of)
        elif claim.answer is not None:
            told = Told("replay", of, claim.answer)
        else:
            told = Told("done_but_not_stored" if claim.state == DONE else "outcome_unknown", of)
        return told, claim, by_key

    def _by_key(self, asked: Asked, now_us: int) -> Claim | None:
        """Its own key, or one that was answered through it. A key whose time is over is free."""
        for one in [one for one in self.claims if not one.retired and self._same_key(one, asked)]:
            if one.state != DONE or now_us < self.own_until_us(one):
                return one
            if self._protects(one, now_us):
                one.retired = True
            else:
                self.claims.remove(one)
        here = (asked.tenant, asked.tool)
        for one in self.claims:
            if asked.key in one.aliases and (one.asked.tenant, one.asked.tool) == here:
                until_us = max(one.aliases[asked.key], self.body_until_us(one))
                if one.state != DONE or now_us < until_us:
                    return one
                del one.aliases[asked.key]
        return None

    def _by_body(self, asked: Asked, now_us: int) -> Claim | None:
        if self.rule.same_body != "replay":
            return None
        window_us = self.rule.same_body_seconds * SECOND_US
        bodies = [
            one
            for one in self.claims
            if not one.retired
            and (one.asked.key is None or one.rule.same_body == "replay")
            and self._same_body(one, asked)
            and (one.state != DONE or now_us < one.used_us + window_us)
        ]
        return max(bodies, key=lambda one: (one.state != DONE, one.used_us), default=None)

    def _same_key(self, claim: Claim, asked: Asked) -> bool:
        one = claim.asked
        if one.key is None and asked.key is None:
            return claim.rule.per == self.rule.per and self._same_body(claim, asked)
        return one.key == asked.key and (one.tenant, one.tool) == (asked.tenant, asked.tool)

    def _same_body(self, claim: Claim, asked: Asked) -> bool:
        """Over the run or the tenant, as it was when the claim was taken."""
        one = claim.asked
        here = (one.tenant, one.tool, one.body) == (asked.tenant, asked.tool, asked.body)
        return here and (claim.rule.per == "tenant" or one.run == asked.run)

    def _claims(self, asked: Asked) -> bool:
        return asked.is_write and (asked.key is not None or self.rule.missing == "derive")

    def _protects(self, claim: Claim, now_us: int) -> bool:
        return claim.state != DONE or now_us < self.until_us(claim)

    def _of(self, name: str) -> Claim | None:
        return next((one for one in self.claims if one.asked.name == name), None)

    def _outcome(self, asked: Asked, end: Ended) -> tuple[str, str]:
        """Rows 6 to 12: the call's state and its claim's."""
        if not end.sent:
            return NOT_SENT, "released"
        if end.status is None or not end.complete:
            return UNKNOWN, UNKNOWN
        if not asked.is_write:
            return DONE, DONE
        if end.status >= 500:
            return UNKNOWN, UNKNOWN
        if end.status in (421, 425, 429):
            return DONE, "released"
        if end.status in (401, 407):
            return DONE, "released" if self.rule.unauthorized == "release" else DONE
        if end.status == 409 and asked.key is not None:
            return UNKNOWN, UNKNOWN
        return DONE, DONE


def answer_of(name: str) -> bytes:
    """The body of the answer to a call: it names the call."""
    return f"answer to {name}".encode()
