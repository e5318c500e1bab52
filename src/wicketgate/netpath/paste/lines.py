# SPDX-License-Identifier: Apache-2.0
"""The lines of a paste, without what terminals and forums put around them, and the commands that were typed."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

# CSI and OSC sequences of a terminal (ECMA-48)
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))")
_QUOTE_MARKS = re.compile(r"^(?:> ?)+")
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_PROMPT = re.compile(
    r"""^(?:\([\w.-]+\)\s*)?                             # (venv)
        (?:\[[^\]]{1,80}\]|[\w.-]{1,64}@[^\s:]{1,80}(?::\S*)?|(?:ba|z|a)?sh-[\d.]+|[~/][^\s#$%]*)?
        \s*[#$%\u276f]\s+""",
    re.VERBOSE,
)
_ORNAMENT = re.compile(r"^[\s=*+:#$%`>-]+|[\s=*:`-]+$")
_KEY = re.compile(r"[A-Za-z0-9+/]{42,43}={1,2}")
_PROGRAMS = frozenset({
    "ip", "nft", "iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-nft", "ip6tables-nft",
    "iptables-legacy", "ip6tables-legacy", "iptables-nft-save", "ip6tables-nft-save", "iptables-legacy-save",
    "ip6tables-legacy-save", "wg", "ss", "netstat", "sysctl", "wg-quick", "cat", "uname", "lsmod", "ping", "curl",
})  # fmt: skip
# Words that run another command, with how many arguments of their own at least.
_WRAPPERS = ("sudo", "doas", "nsenter", "kubectl", "docker", "podman", "crictl", "oc", "ssh", "unshare", "env", "time")


@dataclass(frozen=True, slots=True)
class Command:
    """A command as somebody typed it.

    Attributes:
        program: its name without a path: ip, nft, iptables-save ...
        arguments: the rest.
    """

    program: str
    arguments: tuple[str, ...]

    @property
    def family(self) -> int:
        """4 or 6 where `-4`, `-6` or `-family` say so; 0 otherwise."""
        if "-6" in self.arguments or "inet6" in self.arguments or self.program.startswith("ip6tables"):
            return 6
        if "-4" in self.arguments or "inet" in self.arguments or self.program.startswith("iptables"):
            return 4
        return 0

    def about(self, what: str) -> bool:
        """`ip` was asked for rules ("rule") or routes ("route"), in full or shortened."""
        least = {"rule": 2, "route": 1}[what]
        for word in self.arguments:
            if not word.startswith("-") and word not in ("inet", "inet6"):
                return len(word) >= least and what.startswith(word)
        return False

    def after(self, *names: str) -> str:
        """The argument behind one of these; empty without."""
        for at, word in enumerate(self.arguments[:-1]):
            if word in names:
                return self.arguments[at + 1]
        return ""


def clean(text: str) -> list[str]:
    """The lines without escapes, carriage returns, quote marks and fences; a fence leaves an empty line."""
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    quoted = sum(line.startswith(">") for line in lines) * 2 > sum(bool(line.strip()) for line in lines)
    return [
        "" if _FENCE.match(line) else (_QUOTE_MARKS.sub("", line) if quoted else line).rstrip().replace("\u00a0", " ")
        for line in lines
    ]


def command_of(line: str) -> Command | None:
    """The command of a line, with or without a prompt before it; None for everything else."""
    stripped = line.strip()
    if not stripped or len(stripped) > 400:
        return None
    prompt = _PROMPT.match(stripped)
    typed = stripped[prompt.end() :] if prompt else _ORNAMENT.sub("", stripped)
    words = _split(typed)
    at = _program_at(words)
    if at is None:
        return None
    program = words[at].rsplit("/", 1)[-1]
    arguments = words[at + 1 :]
    for end, word in enumerate(arguments):
        if word in ("|", "||", "&&", ";", ">", "2>&1", "2>/dev/null"):
            arguments = arguments[:end]
            break
    if not prompt and not _plausible(program, arguments):
        return None
    return Command(program, tuple(each.rstrip(";:") for each in arguments))


def _split(typed: str) -> list[str]:
    try:
        return shlex.split(typed)
    except ValueError:
        return typed.split()


def _program_at(words: list[str]) -> int | None:
    """Where the program stands: first, or behind `sudo`, `kubectl exec pod --`, `ip netns exec name`."""
    if not words:
        return None
    at = 0
    if words[0] == "ip" and words[1:3] == ["netns", "exec"]:
        at = 4
    elif words[0] in _WRAPPERS:
        start = _behind_container(words)
        for position, word in enumerate(words[start:], start):
            if word.rsplit("/", 1)[-1] in _PROGRAMS:
                at = position
                break
        else:
            return None
        if words[at] == "ip" and words[at + 1 : at + 3] == ["netns", "exec"]:
            at += 4
    return at if at < len(words) and words[at].rsplit("/", 1)[-1] in _PROGRAMS else None


def _behind_container(words: list[str]) -> int:
    """Where the command in `docker exec -it wg ip rule` may begin: a container may be called like a program."""
    if "--" in words:
        return words.index("--") + 1
    if words[1:2] == ["exec"]:
        for position, word in enumerate(words[2:], 2):
            if not word.startswith("-"):
                return position + 1
    return 1


def _plausible(program: str, arguments: list[str]) -> bool:
    """Without a prompt it may be a sentence: `ip rule shows ...` is one, and as good as the command."""
    if program == "ip":
        known = ("rule", "ru", "route", "r", "ro", "addr", "address", "a", "link", "l", "neigh", "n", "netns")
        return any(each.rstrip(":;") in known for each in arguments[:4])
    if program in ("cat", "uname", "lsmod", "ping", "curl", "ss", "netstat", "sysctl", "wg"):
        return bool(arguments) and len(arguments) < 6 and arguments[0][:1] in "-s/n"
    return len(arguments) < 6


def quotable(line: str, most: int = 60) -> str:
    """A line as a message may show it: bounded, printable, without keys."""
    shown = "".join(each if each.isprintable() else " " for each in _KEY.sub("(key)", line.strip()))
    return shown if len(shown) <= most else shown[:most] + "..."
