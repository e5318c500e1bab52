# SPDX-License-Identifier: Apache-2.0
"""What the pages say is what the program does: links, command lines, flags, variables, defaults, examples."""

from __future__ import annotations

import dataclasses
import inspect
import re
import shlex
from enum import Enum
from pathlib import Path

import pytest
from cyclopts.exceptions import MissingArgumentError

from wicketgate.cli.app import COMMANDS, build
from wicketgate.cli.sidecar import sidecar
from wicketgate.cli.up import up
from wicketgate.config import wgquick
from wicketgate.config.problems import ConfigErrors
from wicketgate.config.reader import KEYS
from wicketgate.config.settings import (
    GatewaySettings,
    Level,
    Role,
    SidecarSettings,
    Strategy,
    environment_name,
    flag_name,
)
from wicketgate.errors import InputError
from wicketgate.gateway import desired, endpoints, exit_peer, hooks, pins
from wicketgate.kernel.ownership import LINK_ALIAS, ROUTE_PROTOCOL
from wicketgate.wireguard.keys import PrivateKey

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / n for n in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
EVERYTHING = "\n".join(page.read_text() for page in PAGES)
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


def fences(text: str) -> list[tuple[str, str]]:
    """Language and content of every fenced block."""
    return [(match[2], match[3]) for match in _FENCE.finditer(text)]


def prose(text: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", text)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as code hosts and mkdocs make them."""
    titles = re.findall(r"^#+ +(.*?)\s*$", prose(page.read_text()), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}


@each_page
def test_every_relative_link_leads_somewhere(page):
    """The file exists, and so does the heading after the #."""
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(target)
    assert not broken


def test_the_navigation_has_every_page_once():
    """mkdocs.yml names each page of docs/, and nothing else."""
    named = re.findall(r"^ +- .*?: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(p.relative_to(ROOT / "docs")) for p in PAGES if ROOT / "docs" in p.parents)


@each_page
def test_paths_and_targets_that_are_named_exist(page):
    """`scripts/x`, `bench/x.py`, `tests/x`, `deploy/x` are files or folders of this repository, `make x` is a target."""
    text = page.read_text()
    named = re.findall(r"`((?:scripts|bench|tests|deploy|docs|src)/[\w./*-]*)", text)
    assert [n for n in named if not any(ROOT.glob(n.rstrip("/")))] == []
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`make ([a-z-]+)", text))
    for language, block in fences(text):
        if language == "sh":
            targets |= set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE))
    assert [t for t in targets if f"\n{t}:" not in makefile] == []


@each_page
def test_no_page_names_a_registry_host(page):
    """Where packages and images come from is the reader's choice."""
    hosts = r"docker\.io|ghcr\.io|quay\.io|gcr\.io|registry\.k8s\.io|ecr\.aws|pypi\.org|npmjs|crates\.io|proxy\.golang"
    assert not re.findall(hosts, page.read_text())


# Command lines


def command_lines(text: str) -> list[str]:
    """Every `wicket ...` in code that a reader would type."""
    lines: list[str] = []
    for language, block in fences(text):
        if language in {"sh", "bash", ""}:
            lines += block.replace("\\\n", " ").splitlines()
        elif language == "console":
            lines += [line[2:] for line in block.splitlines() if line.startswith("$ ")]
    lines += [line for line in prose(text).splitlines() if line.startswith("    wicket ")]
    found = []
    for line in lines:
        for piece in re.split(r"&&|\||;| > ", line):
            match = re.match(r"\s*(?:sudo )?(?:\.venv/bin/)?(wicket .*)", piece)
            if match:
                # What follows two blanks or a # says in words what the command does.
                found.append(re.split(r" {2,}| +#", match[1].strip())[0])
    return found


def parse(line: str) -> None:
    """As the program would; raises what is wrong with it."""
    words = shlex.split(line)[1:]
    build(words[0] if words else "").parse_args(words, print_error=False, exit_on_error=False)


@each_page
def test_command_lines_are_understood(page):
    """Each one in a block of code parses: the command exists, its flags do, and its arguments are complete."""
    for line in command_lines(page.read_text()):
        parse(line)


@each_page
def test_commands_in_sentences_exist(page):
    """`wicket up`, `wicket up --help`: the command and its flags exist; arguments may be left out."""
    for line in re.findall(r"`(wicket [^`]+)`", prose(page.read_text())):
        try:
            parse(line.replace("COMMAND", "up"))
        except MissingArgumentError:
            continue


def test_a_wrong_command_line_is_found():
    """The two tests above can fail."""
    for line in ("wicket up wg0.conf --rolle exit", "wicket upp wg0.conf", "wicket lab rum seed"):
        with pytest.raises(Exception, match=r"Unknown|unknown|Unable|Unused"):
            parse(line)
    assert command_lines("```sh\nsudo .venv/bin/wicket up a.conf  # words\n```\n") == ["wicket up a.conf"]


def test_the_sidecars_arguments_in_manifests_are_understood():
    """`args:` of a container that runs `wicket sidecar` parse."""
    blocks = [b for language, b in fences((ROOT / "docs" / "sidecar.md").read_text()) if language == "yaml"]
    lists = [match for block in blocks for match in re.findall(r"args: \[(.*?)\]", block)]
    assert len(lists) >= 2
    for words in lists:
        parse("wicket sidecar " + words.replace(",", " "))


def test_every_command_has_its_section():
    """docs/commands.md has one for each command the program has."""
    sections = anchors(ROOT / "docs" / "commands.md")
    assert {f"wicket-{command.name}" for command in COMMANDS} <= sections


def test_every_flag_of_probe_trace_watch_and_lab_is_in_commands_md():
    """The flags of the commands that have no settings are all told, with nothing invented."""
    text = (ROOT / "docs" / "commands.md").read_text()
    told = set(re.findall(r"^\| (`--.*?`) \|", text, re.MULTILINE))
    told = {flag for cell in told for flag in re.findall(r"--[a-z-]+", cell)}
    app = build("probe")
    names = {each: app[each] for each in ("probe", "trace", "watch")} | {
        f"lab {n}": app["lab"][n] for n in ("up", "run", "status", "exec", "down")
    }
    real = set()
    for each in names.values():
        for argument in each.assemble_argument_collection():
            real |= {n for n in argument.names if n.startswith("--")}
    positional = {"--scenario", "--host"}  # cyclopts takes these by name as well
    real = {n for n in real if not n.startswith("--no-") or n.replace("no-", "", 1) not in real} - positional
    assert told == real


# Flags, variables, defaults

Settings = type[GatewaySettings] | type[SidecarSettings]


def table(settings: Settings) -> dict[str, list[str]]:
    """The rows of the flags' table, by flag."""
    after = CONFIGURATION.partition(f"<!-- {settings.__name__}:")[2]
    assert after, settings.__name__
    rows = []
    for line in after.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {row[0].strip("`"): row[1:] for row in rows[2:]}


both = pytest.mark.parametrize("settings", [GatewaySettings, SidecarSettings])


def plain(value: object) -> str:
    """A default as the page spells it."""
    if isinstance(value, Enum):
        return str(value.value)
    return f"{value:g}" if isinstance(value, float) else str(value)


@both
def test_every_flag_is_told_with_its_variable_and_default(settings):
    """The table has exactly the settings' fields; variables and defaults are the program's."""
    rows = table(settings)
    fields = {flag_name(field.name): field for field in dataclasses.fields(settings)}
    assert set(rows) == set(fields)
    for flag, field in fields.items():
        variable, default = rows[flag][0], rows[flag][1]
        assert variable == f"`{environment_name(field.name)}`"
        if field.default is not None:
            assert default == f"`{plain(field.default)}`", flag
        elif flag != "--level":
            assert "`" not in default, flag  # in words: there is none
    level = rows["--level"]
    if settings is GatewaySettings:
        assert level[1] == "by role"
        assert GatewaySettings(role=Role.SERVER).effective_level is Level.TUNNEL
        assert GatewaySettings(role=Role.EXIT).effective_level is Level.EGRESS
        assert "`tunnel` for a server, `egress` for an exit" in level[3]
    else:
        assert level[1] == f"`{SidecarSettings().effective_level}`"


def accepted(settings: Settings, flag: str, value: str) -> bool:
    """Whether the program takes it."""
    try:
        settings.load({flag.removeprefix("--").replace("-", "_"): value}, {})
    except InputError:
        return False
    return True


@both
def test_what_is_allowed_is_what_the_program_allows(settings):
    """The words of a list are accepted and all others of its kind are not; of a range both ends are, and no more."""
    words = {str(m.value) for field in dataclasses.fields(settings) for m in _members(field)} | {
        "json",
        "console",
        "off",
    }
    looked = 0
    for flag, row in table(settings).items():
        allowed = row[2]
        span = re.match(r"([\d.]+)-([\d.]+)", allowed)
        if span and "characters" not in allowed:
            low, high = float(span[1]), float(span[2])
            step = 0.01 if "." in span[1] else 1
            assert accepted(settings, flag, span[1]), flag
            assert accepted(settings, flag, span[2]), flag
            assert accepted(settings, flag, f"{low - step:g}") == ("0 for none" in allowed), flag
            assert not accepted(settings, flag, f"{high + 1:.0f}"), flag
            looked += 1
        elif flag not in {"--egress", "--interface", "--private-key-file", "--preshared-key-file", "--public-key"}:
            listed = set(re.findall(r"`([a-z]+)`", allowed))
            assert listed == {word for word in words if accepted(settings, flag, word)}, flag
            looked += 1
    assert looked >= len(dataclasses.fields(settings)) - 5


def _members(field: dataclasses.Field) -> list[Enum]:
    """The members of an enum field's kind."""
    kind = type(field.default)
    if field.name == "level":
        kind = Level
    return list(kind) if issubclass(kind, Enum) else []


@pytest.mark.parametrize(("command", "settings"), [(up, GatewaySettings), (sidecar, SidecarSettings)])
def test_the_commands_take_the_flags_that_are_told(command, settings):
    """Each field of the settings is a flag of the command, and there are no others."""
    takes = {
        flag_name(p.name)
        for p in inspect.signature(command).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    assert takes == {flag_name(f.name) for f in dataclasses.fields(settings)}


def test_variables_are_the_programs():
    """Each WICKET_ variable that a page names is read by the program, and each that it reads is on a page."""
    fields = {f.name for s in (GatewaySettings, SidecarSettings) for f in dataclasses.fields(s)}
    source = "\n".join(p.read_text() for p in (ROOT / "src").rglob("*.py"))
    read = {environment_name(f) for f in fields} | set(re.findall(r'environ\.get\("(WICKET_\w+)"', source))
    assert set(re.findall(r"\bWICKET_[A-Z_]+\b", EVERYTHING)) == read


def test_strategies_that_are_not_built_are_named_as_such():
    """The page of limits names exactly the strategies that the program refuses as not built."""
    unbuilt = {s.value for s in Strategy if not accepted(GatewaySettings, "--strategy", s.value)}
    limits = (ROOT / "docs" / "limits.md").read_text()
    sentence = re.search(r"^The strategies (.*?);", limits, re.MULTILINE)
    assert sentence is not None
    assert set(re.findall(r"`(\w+)`", sentence[1])) == unbuilt


def test_numbers_on_the_configuration_page_are_the_programs():
    """Priorities, tables, times and tags."""
    for sentence in (
        f"at priority {pins.PIN_PRIORITY}",
        f"in table {desired.EXIT_TABLE}, with the rules {desired.SUPPRESS_PRIORITY}",
        f"and {desired.TUNNEL_PRIORITY} (",
        f"less {desired.WIREGUARD_OVERHEAD}, at least {desired.MINIMUM_MTU}, at most {desired.WIREGUARD_MTU}",
        f"silent for {endpoints.SILENT_AFTER:g} s",
        f"in the last {exit_peer.DEAD_AFTER:g} s",
        f"; {hooks.HOOK_TIMEOUT:g} s each",
        f"protocol {ROUTE_PROTOCOL} (`proto {ROUTE_PROTOCOL}`",
        f"alias `{LINK_ALIAS}`",
    ):
        assert sentence in CONFIGURATION, sentence


# The wg-quick file


@pytest.mark.parametrize("section", ["Interface", "Peer"])
def test_every_key_is_told(section):
    """The table of a section has exactly the keys that are read."""
    part = CONFIGURATION.partition(f"### [{section}]")[2].partition("\n#")[0]
    told = [key for row in re.findall(r"^\| (`.*?) \|", part, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert sorted(told) == sorted(KEYS[section])


def example() -> str:
    """The page's wg-quick file with keys in the places of the placeholders."""
    text = next(block for language, block in fences(CONFIGURATION) if language == "ini")
    text = text.replace("<wg genkey>", PrivateKey.generate().expose_base64(), 1)
    return text.replace("<wg pubkey>", str(PrivateKey.generate().public()), 1)


def test_the_example_is_a_wg_quick_file():
    """It loads without a warning, and its peer has the name that the page says."""
    config = wgquick.parse(example(), path="wg0.conf")
    assert config.warnings == ()
    assert [p.name for p in config.peers] == ["alice"]
    assert {a.version for a in config.interface.addresses} == {4, 6}


def test_the_error_that_is_shown_is_the_one_that_comes():
    """As far as it is quoted: up to the ellipsis."""
    shown = next(b for language, b in fences(CONFIGURATION) if language == "text" and "70000" in b)
    key = PrivateKey.generate().expose_base64()
    with pytest.raises(ConfigErrors) as caught:
        wgquick.parse(f"[Interface]\nPrivateKey = {key}\nListenPort = 70000\nAddr = 10.0.0.1/24\n", path="wg0.conf")
    real = f"wicket: {caught.value}".splitlines()
    for line, came in zip(shown.splitlines(), real, strict=True):
        assert came.startswith(line.removesuffix("..."))
