# SPDX-License-Identifier: Apache-2.0
"""Policy rules by the netlink adapter: written, read back and told apart."""

from __future__ import annotations

import errno
from ipaddress import ip_network

import pytest
from pyroute2.netlink import NLM_F_CREATE, rtnl

from netns.netlink_stand import FULL, RULES, on, wired
from wicketgate.errors import KernelRefused
from wicketgate.kernel import netlink as netlink_module
from wicketgate.kernel.messages import RuleMessage
from wicketgate.netpath.snapshot import Rule


@pytest.fixture
def host(new_host):
    return wired(new_host)


def test_every_kind_of_rule_is_written_and_read_back_as_it_was_asked(host):
    """Marks, masks, ports, users, suppressors, goto, not, tables beyond 255, priority 0: added, listed, deleted."""

    async def main(netlink):
        before = await netlink.rules()
        for rule in RULES:
            await netlink.add_rule(rule)
        during = await netlink.rules()
        assert [rule for rule in RULES if rule not in during] == []
        assert len(during) == len(before) + len(RULES)
        for rule in RULES:
            await netlink.delete_rule(rule)
        assert await netlink.rules() == before

    on(host, main)
    # iproute2's spelling, taken for pyroute2's, once installed a default-route hijack: what we write is what ip shows.
    on(host, lambda netlink: netlink.add_rule(RULES[1]))
    assert "32764:\tfrom all lookup main suppress_prefixlength 0\n" in host.run("ip", "rule").stdout


def test_rules_that_look_alike_to_the_kernel_are_told_apart(host):
    """The kernel takes what is not said for equal, the not-flag too; the adapter adds and deletes exactly the one."""
    alike = [
        Rule(4, 50, table=254, src=ip_network("10.0.0.1"), protocol=87),
        Rule(4, 50, table=254, fwmark=1, fwmask=FULL, protocol=87),
        Rule(4, 50, table=254, fwmark=1, fwmask=FULL, invert=True, protocol=87),
        Rule(4, 50, table=254, protocol=87),
    ]

    async def main(netlink):
        before = set(await netlink.rules(4))
        for rule in alike:
            await netlink.add_rule(rule)
        left = set(alike)
        for rule in reversed(alike):
            await netlink.delete_rule(rule)
            left.remove(rule)
            assert set(await netlink.rules(4)) == before | left
            with pytest.raises(KernelRefused) as caught:
                await netlink.delete_rule(rule)
            assert caught.value.errno == errno.ENOENT

    on(host, main)


def test_the_same_rule_twice_is_an_error(host):
    """Idempotence is the caller's: EEXIST, with the command in iproute2's words."""

    async def main(netlink):
        await netlink.add_rule(RULES[2])
        with pytest.raises(KernelRefused) as caught:
            await netlink.add_rule(RULES[2])
        assert caught.value.errno == errno.EEXIST
        assert caught.value.what == "ip -4 rule add from 192.0.2.1 lookup main pref 100 protocol 87"

    on(host, main)


def test_a_rule_that_came_out_wider_is_undone_and_refused(host, monkeypatch):
    """A kernel too old for an attribute ignores it; read back, such a rule is taken out again at once."""
    real = netlink_module.rule_parts

    def forgetful(rule):
        fields, attributes = real(rule)
        return fields, attributes | {"FRA_SUPPRESS_PREFIXLEN": None}

    async def main(netlink):
        before = await netlink.rules()
        monkeypatch.setattr(netlink_module, "rule_parts", forgetful)
        with pytest.raises(KernelRefused, match="made something else of it") as caught:
            await netlink.add_rule(Rule(4, 60, table=254, suppress_prefixlength=0))
        assert caught.value.errno == errno.EOPNOTSUPP
        assert "60:\tfrom all lookup main" in str(caught.value)
        assert await netlink.rules() == before

    on(host, main)


def test_a_selector_of_a_later_kernel_makes_the_rule_unknown(host):
    """A dscp rule, which iproute2 6.1 cannot even write, is not read as `from all`."""

    async def main(netlink):
        parts = {"family": 2, "action": 1, "table": 254}
        attributes = {"FRA_PRIORITY": 70, "FRA_TABLE": 254, "FRA_DSCP": 10}
        try:
            await netlink.connection.request(
                RuleMessage, rtnl.RTM_NEWRULE, parts, attributes, flags=NLM_F_CREATE, what="ip rule add dscp 10"
            )
        except KernelRefused:
            pytest.skip("this kernel is older than FRA_DSCP (6.13)")
        (rule,) = [rule for rule in await netlink.rules(4) if rule.priority == 70]
        assert rule.unknown[0] == "FRA_DSCP 10"  # and its mask, since 6.15

    on(host, main)
