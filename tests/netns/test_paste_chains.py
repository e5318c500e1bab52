# SPDX-License-Identifier: Apache-2.0
"""`iptables -L`, as people paste it, has the rules that iptables-save has, or says which it does not understand."""

from __future__ import annotations

from random import Random

import pytest

from netns.corpus_files import FILES, rules_of
from netns.filter_rules import Maker
from wicketgate.lab.host import Host
from wicketgate.netpath.netfilter.ipt.model import Option, Rule
from wicketgate.netpath.netfilter.ipt.parse import parse
from wicketgate.netpath.netfilter.names import INTERFACES_NOT_LISTED, NOT_UNDERSTOOD
from wicketgate.netpath.paste.chains_text import ChainReader
from wicketgate.netpath.paste.sort import sort

RULESETS = 12
DEFAULTS = {("limit-burst", ("5",)), ("nfmask", ("0xffffffff",)), ("ctmask", ("0xffffffff",))}


def plain(option: Option) -> tuple[str, tuple[str, ...], bool]:
    """An option without what the two listings spell differently and mean alike."""
    numbers = {
        "all": "0",
        "tcp": "6",
        "udp": "17",
        "icmp": "1",
        "ipv6-icmp": "58",
        "icmpv6": "58",
        "esp": "50",
        "ah": "51",
        "gre": "47",
        "sctp": "132",
        "ipencap": "4",
    }
    args = tuple(
        numbers.get(arg, arg) if option.name == "p" else ",".join(sorted(_unmasked(arg).split(",")))
        for arg in option.args
    )
    return ("set-xmark" if option.name == "set-mark" else option.name, args, option.negated)


def _unmasked(arg: str) -> str:
    for mask in ("/32", "/128", "/0xffffffff"):
        arg = arg.removesuffix(mask)
    return arg


def meaning(rule: Rule) -> object:
    """What a rule says, whatever the order of its matches; comments and what a log is called say nothing."""
    matches = {
        (match.module if match.module not in ("tcp", "udp", "ip") else "", plain(option))
        for match in rule.matches
        for option in match.options
        if match.module != "comment" and (option.name, option.args) not in DEFAULTS
    }
    bare = {
        match.module
        for match in rule.matches
        if not match.options and match.module not in ("tcp", "udp", "icmp", "comment")
    }
    target = rule.target
    options = (
        ()
        if target.name in ("LOG", "NFLOG")
        else tuple(sorted(plain(each) for each in target.options if (each.name, each.args) not in DEFAULTS))
    )
    return matches, bare, target.name, target.goto, options


def compared(host: Host, tool: str) -> tuple[int, int]:
    """How many rules a kind of iptables has, and how many of them were understood; any other difference fails."""
    saved = parse(host.run(f"{tool}-save").stdout)
    rules = understood = 0
    for name, table in saved.items():
        text = host.run(tool, "-t", name, "-nvL").stdout
        listed = sort(f"$ {tool} -t {name} -nvL\n{text}")
        assert listed.notes == []
        (one,) = listed.saved
        theirs = parse(one.text())[name]
        assert set(theirs.chains) == set(table.chains)
        for chain in table.chains.values():
            other = theirs.chains[chain.name]
            assert (other.policy, len(other)) == (chain.policy, len(chain)), chain.name
            for left, right in zip(chain.rules(), other.rules(), strict=True):
                rules += 1
                if any(match.module == NOT_UNDERSTOOD for match in right.matches):
                    continue
                assert meaning(left) == meaning(right), (left.text, right.text)
                understood += 1
    return rules, understood


@pytest.mark.parametrize("tool", ["iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"])
def test_random_rules_are_understood_or_said_not_to_be(new_host, tool):
    """For random rules that the kernel takes: the same matches, targets and options."""
    seed = loaded = rules = understood = 0
    while loaded < RULESETS:
        seed += 1
        made = Maker(Random(seed)).rules()
        texts = [text for name, text in made.restore if name == f"{tool}-restore"]
        if not texts:
            continue
        host = new_host("chains")
        host.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        host.run("ipset", "restore", stdin=made.ipset)
        if host.run(f"{tool}-restore", stdin=texts[0], check=False).returncode == 0:
            loaded += 1
            here = compared(host, tool)
            rules, understood = rules + here[0], understood + here[1]
    assert rules > 5 * RULESETS
    assert understood > 0.7 * rules, (understood, rules)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith("tables")])
def test_well_known_rules_are_understood(new_host, name):
    """The corpus, listed by either iptables."""
    for backend in ("nft", "legacy"):
        made = rules_of(name, backend)
        host = new_host("chains")
        if made.ipset:
            host.run("ipset", "restore", stdin=made.ipset)
        ((restore, text),) = made.restore
        host.run(restore, stdin=text)
        rules, understood = compared(host, restore.removesuffix("-restore"))
        assert rules > 1
        assert understood > 0.7 * rules, (understood, rules)


def test_without_v_every_rule_says_that_something_is_left_out(new_host):
    """`iptables -nL` and `iptables -L`: as many rules, each with a match that nobody knows."""
    host = new_host("chains")
    ((restore, text),) = rules_of("ufw.iptables").restore
    host.run(restore, stdin=text)
    table = parse(host.run("iptables-nft-save").stdout)["filter"]
    for option in ("-nL", "-L"):
        (one,) = sort(f"# iptables-nft {option}\n" + host.run("iptables-nft", option).stdout).saved
        theirs = parse(one.text())["filter"]
        assert {name: len(chain) for name, chain in theirs.chains.items()} == {
            name: len(chain) for name, chain in table.chains.items()
        }
        rules = [rule for chain in theirs.chains.values() for rule in chain.rules()]
        assert all(INTERFACES_NOT_LISTED in [match.module for match in rule.matches] for rule in rules)


def test_the_names_of_ports_are_those_of_the_machine(new_host):
    """Without -n iptables asks /etc/services: each name that it prints is read as the number that was typed, or not at all."""
    host = new_host("chains")
    ports = [*range(1, 1200), 2049, 3306, 4500, 5353, 5432, 8080]
    rules = "".join(
        f"-A INPUT -p {kind} -m {kind} --dport {port} -j DROP\n" for port in ports for kind in ("tcp", "udp")
    )
    host.run("iptables-nft-restore", stdin=f"*filter\n:INPUT ACCEPT [0:0]\n{rules}COMMIT\n")
    (one,) = sort("# iptables-nft -vL\n" + host.run("iptables-nft", "-vL").stdout).saved
    named = 0
    for wanted, rule in zip(rules.splitlines(), parse(one.text())["filter"].chains["INPUT"].rules(), strict=True):
        if NOT_UNDERSTOOD not in rule.text:
            assert rule.text == wanted
        else:
            named += 1
    assert 0 < named < 700, "most have no name; of those with one the commonest are known"
    assert " --dport 443 " in one.text()


def test_a_line_that_is_no_rule_ends_the_listing():
    """What follows is somebody's prose."""
    reader = ChainReader()
    assert reader.take("Chain INPUT (policy ACCEPT)") == ["-P INPUT ACCEPT"]
    assert reader.take("target     prot opt source               destination") == []
    assert reader.take("so what should I do about all this ?") is None
    assert reader.take("DROP tcp -- anywhere anywhere") is None
