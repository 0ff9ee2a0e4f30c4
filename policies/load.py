"""A policy file -> Policy. The only reader of policy files.

The text is parsed (`document.py`), held against the schema (`schema.py`), checked as a whole and
compiled into the indexed, frozen form that judging uses. All mistakes are told at once.
"""

import hashlib
import stat
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from policies import (
    document,
    load_bounds,
    load_costs,
    load_detectors,
    load_grants,
    load_records,
    load_undo,
    load_value,
    paths,
)
from policies.alerts import Alert
from policies.ceilings import Ceiling
from policies.document import Document, Location, Mistake, MistakenFileError
from policies.mistakes import suggestion, validated
from policies.policy import RESERVED, UNLISTED, Holder, Policy, Tool, covers
from policies.pricing import Pricing
from policies.schema import PolicyFile, PulledRule
from policies.verdict import Level, Pull, Pulls, Scope, tool_of

PolicyError = MistakenFileError
"""Raised for a policy that cannot be used; one line for each mistake, `mistakes` holds them."""

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def load_file(path: Path | str) -> Policy:
    """Read and compile a policy file. Raises PolicyError."""
    return load(text_of(path), str(path))


def text_of(path: Path | str) -> str:
    """What stands in a file of ours, policy or runbook. Raises PolicyError."""
    source = str(path)
    try:
        mode = Path(path).stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for somebody who writes into it
            wrong = f"is {_KINDS.get(stat.S_IFMT(mode), 'no file')}; it must be a plain file"
            raise PolicyError(source, [Mistake(0, 0, wrong)])
        with Path(path).open("rb") as file:
            content = file.read(document.BYTES_MAX + 1)
    except OSError as fault:
        raise PolicyError(source, [Mistake(0, 0, f"cannot be read: {fault.strerror}")]) from None
    if len(content) > document.BYTES_MAX:
        raise PolicyError(source, [Mistake(0, 0, "is larger than 1 MiB")])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        before = content[: fault.start]
        column = fault.start - (before.rfind(b"\n") + 1) + 1
        wrong = f"is not UTF-8 (byte 0x{content[fault.start]:02x}); save the file as UTF-8"
        raise PolicyError(source, [Mistake(before.count(b"\n") + 1, column, wrong)]) from None


def load(text: str, source: str = "policy.yaml") -> Policy:
    """Compile the text of a policy; `source` is how its author calls it. Raises PolicyError."""
    read = document.parse(text, source)
    named = read.keys(("tools",))
    file, mistakes = validated(PolicyFile, read, {"version": 1})
    mistakes += read.mistakes
    if file is None:
        raise PolicyError(source, mistakes)
    read = replace(read, mistakes=tuple(mistakes))
    compiler = _Compiler(file, read, source, hashlib.sha256(text.encode()).hexdigest(), named)
    policy = compiler.policy(text)
    mistakes += compiler.mistakes
    for part in (load_grants, load_records, load_undo, load_detectors):
        mistakes += part.mistakes(file, read)
    if mistakes:
        raise PolicyError(source, mistakes)
    return policy


class _Compiler:
    """Turns the checked file into a Policy and collects what is wrong with it as a whole."""

    def __init__(
        self, file: PolicyFile, read: Document, source: str, digest: str, named: list[str]
    ) -> None:
        self.file = file
        self.read = read
        self.source = source
        self.digest = digest
        self.names = [*dict.fromkeys(named), UNLISTED]
        self.mistakes: list[Mistake] = []

    def policy(self, text: str) -> Policy:
        file = self.file
        tools = {name: self.tool(name, order) for order, name in enumerate(file.tools)}
        by_host, by_suffix = _by_host(tools.values())
        ceilings = self.ceilings()
        return Policy(
            digest=self.digest,
            source=self.source,
            text=text,
            unlisted=file.unlisted,
            tools=tools,
            by_host=by_host,
            by_suffix=by_suffix,
            pulls={
                **self.pulls(Level.FREEZE, "frozen", file.frozen),
                **self.pulls(Level.HALT, "halted", file.halted),
                **self.refused_releases(),
            },
            tenants={name: self.holder("tenants", name) for name in file.tenants},
            agents={name: self.holder("agents", name) for name in file.agents},
            ceilings=ceilings,
            ceilings_of={
                name: tuple(ceiling for ceiling in ceilings if covers(ceiling.tools, name))
                for name in self.names
            },
            tag_headers=(file.tags.run, file.tags.tenant),
            known_good=self.known_good(),
            windows=_by_window(ceilings),
            unbounded=load_bounds.unbounded(file.ceilings),
            prices=self.prices(),
            redaction=load_records.redaction(file.redact),
            detectors=load_detectors.rules(file),
            alerts=tuple(self.alert(place) for place in range(len(file.alerts))),
        )

    def tool(self, name: str, order: int) -> Tool:
        rule = self.file.tools[name]
        match = rule.match
        if name.startswith(RESERVED):
            text = f"tools that begin with {RESERVED!r} are pullcord's own; choose another name"
            self.mistakes.append(self.read.at(("tools", name), text, of_key=True))
        return Tool(
            name=name,
            order=order,
            hosts=tuple(dict.fromkeys(match.host)),
            port=match.port,
            methods=None if "*" in match.method else frozenset(match.method),
            path=None if match.path is None else paths.template(match.path),
            mcp_tool=match.mcp_tool,
            graphql_operation=match.graphql_operation,
            model_api=rule.model_api,
            effect=rule.effect,
            websocket=rule.websocket,
            key=load_records.key_rule(rule),
            allow_addresses=tuple(ip_network(block) for block in rule.allow_addresses),
            tags=rule.tags,
            cost=load_costs.tool_cost(rule),
            line=self.read.locate_key(("tools", name)).start_mark.line + 1,
            where=load_grants.conditions(rule.where),
            reads=load_grants.reads(self.file, name),
            body_bytes_max=load_grants.body_bytes_max(rule),
            hold=rule.hold,
            hold_seconds=load_grants.hold_seconds(rule),
            stream=rule.stream,
            trace=rule.trace,
            verify=load_records.operator_call(rule.verify),
            undo=load_undo.undo(rule.undo),
            value=load_value.tool_value(rule.value),
        )

    def named(self, glob: str, location: Location) -> list[str]:
        """The tools that a glob names. One that names none is a mistake, not a silent no-op."""
        names = [name for name in self.names if covers((glob,), name)]
        if not names:
            hint = suggestion(glob, self.names)
            self.mistakes.append(self.read.at(location, f"no tool is named {glob!r}{hint}"))
        return names

    def holder(self, section: Literal["tenants", "agents"], name: str) -> Holder:
        rule = (self.file.tenants if section == "tenants" else self.file.agents)[name]
        for place, grant in enumerate(rule.allow or ()):
            self.named(grant.tool, (section, name, "allow", place, "tool"))
        return load_grants.holder(rule)

    def pulls(self, level: Level, section: str, rule: PulledRule) -> Pulls:
        stated: list[tuple[Scope, str, Location]] = []
        if rule.all:
            stated.append((Scope.GLOBAL, "", (section, "global")))
        scopes = (
            (Scope.TENANT, "tenants", rule.tenants),
            (Scope.RUN, "runs", rule.runs),
            (Scope.RELEASE, "releases", rule.releases),
        )
        for scope, key, subjects in scopes:
            for place, subject in enumerate(subjects):
                stated.append((scope, subject, (section, key, place)))
        for place, subject in enumerate(rule.tools):
            location: Location = (section, "tools", place)
            run, glob = tool_of(subject)
            if set(run) & set("*?[/"):
                text = f"a run is named exactly, not by a pattern such as {run!r}"
                self.mistakes.append(self.read.at(location, text))
                continue
            above = f"{run}/" if run else ""
            stated += [
                (Scope.TOOL, f"{above}{name}", location) for name in self.named(glob, location)
            ]
        return self.cords(level, stated)

    def refused_releases(self) -> Pulls:
        stated: list[tuple[Scope, str, Location]] = [
            (Scope.RELEASE, release, ("releases", "refused", place))
            for place, release in enumerate(self.file.releases.refused)
        ]
        return self.cords(Level.HALT, stated)

    def cords(self, level: Level, stated: list[tuple[Scope, str, Location]]) -> Pulls:
        """What the file pulls, each cord with the line that does."""
        actor = f"policy:{self.digest[:12]}"
        return {
            (level, scope, subject): Pull(
                level, scope, subject, f"{self.source}:{self.read.line(location)}", actor, 0
            )
            for scope, subject, location in stated
        }

    def known_good(self) -> frozenset[str]:
        releases = self.file.releases
        refused = set(releases.refused)
        for place, release in enumerate(releases.known_good):
            if release in refused:
                text = (
                    f"the release {release!r} stands under 'refused', too; it is one or the other"
                )
                self.mistakes.append(self.read.at(("releases", "known_good", place), text))
        return frozenset(releases.known_good)

    def alert(self, place: int) -> Alert:
        rule = self.file.alerts[place]
        if rule.scope is Scope.TOOL and rule.subject and rule.subject not in self.names:
            hint = suggestion(rule.subject, self.names)
            text = f"no tool is named {rule.subject!r}{hint}"
            self.mistakes.append(self.read.at(("alerts", place, "subject"), text))
        match = tuple(rule.match.items())
        return Alert(match, Level(rule.pull), rule.scope, rule.label or "", rule.subject or "")

    def prices(self) -> Pricing:
        self.mistakes += load_costs.unknown_providers(self.file.prices, self.read)
        return load_costs.pricing(self.file.prices)

    def ceilings(self) -> tuple[Ceiling, ...]:
        found: dict[str, Ceiling] = {}
        for place, rule in enumerate(self.file.ceilings):
            if rule.tool is not None:
                self.named(rule.tool, ("ceilings", place, "tool"))
            if rule.unbounded:
                continue
            line = self.read.line(("ceilings", place))
            ceiling = replace(load_bounds.ceiling(rule), line=line)
            if self.read.is_mistaken(("ceilings", place)):
                continue  # without what is wrong with it, it only looks like another one
            if ceiling.id in found:
                text = "this ceiling stands twice; a ceiling is its content, not its place"
                self.mistakes.append(self.read.at(("ceilings", place), text))
            found[ceiling.id] = ceiling
        return (*found.values(), *load_bounds.shipped(self.file.ceilings))


def _by_host(
    tools: Iterable[Tool],
) -> tuple[dict[str, tuple[Tool, ...]], dict[str, tuple[Tool, ...]]]:
    """Tools by exact host and by suffix, in the order of the file."""
    exact: defaultdict[str, list[Tool]] = defaultdict(list)
    suffix: defaultdict[str, list[Tool]] = defaultdict(list)
    for tool in tools:
        for host in tool.hosts:
            if host.startswith("*."):
                suffix[host[2:]].append(tool)
            else:
                exact[host].append(tool)
    return (
        {host: tuple(found) for host, found in exact.items()},
        {host: tuple(found) for host, found in suffix.items()},
    )


def _by_window(ceilings: Iterable[Ceiling]) -> dict[str, tuple[Ceiling, ...]]:
    sharing: defaultdict[str, list[Ceiling]] = defaultdict(list)
    for ceiling in ceilings:
        sharing[ceiling.window].append(ceiling)
    return {window: tuple(found) for window, found in sharing.items()}
