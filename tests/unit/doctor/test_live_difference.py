# SPDX-License-Identifier: Apache-2.0
"""The computed way and the kernel's, brought to the same points and compared."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from doctor_pod import HEALTHY, filtered, settled, wg_quicked
from wicketgate.cli.flow_arguments import concern_of, ends_of
from wicketgate.doctor.firewall import filter_of
from wicketgate.doctor.live_difference import (
    BEHIND,
    ENTERS,
    LEAVES,
    LOST,
    NEVER,
    UNKNOWN,
    Point,
    compare,
    computed_points,
    first_difference,
    kernel_points,
)
from wicketgate.kernel.twin.nft_trace import LIVE_TABLE, Traced
from wicketgate.netpath.diagnose import diagnose
from wicketgate.netpath.packet import TCP, Ends
from wicketgate.netpath.routing import Routing
from wicketgate.netpath.walk import Walker

ENDS = Ends(ip_address("203.0.113.9"), ip_address("10.0.0.2"), TCP, 40000, 9000)
NAMES = {1: "lo", 2: "eth0", 3: "wg0"}
SET_MARK = [{"mangle": {"key": {"meta": {"key": "mark"}}, "value": 7}}]


def diagnosed(snapshot):
    routing = Routing(snapshot)
    concern = concern_of(snapshot, ends_of(None, "10.0.0.2:9000/tcp"))
    return diagnose(Walker(snapshot, filter_of(snapshot, routing), routing=routing), concern)


def ours(chain: str, *, ends: Ends | None = ENDS, mark: int = 0, oif: int = 0) -> list[Traced]:
    """The words of one of the watching chains: the first one has the packet, the policy's nothing but the mark."""
    hook = chain.partition("_")[0]
    iif = 2 if hook in ("prerouting", "input") else 0
    begins = Traced("inet", LIVE_TABLE, chain, 1, "continue", hook, "", mark, 9, iif, oif, ends)
    return [begins, Traced("inet", LIVE_TABLE, chain, 0, "accept", hook, "", mark, 9)]


def theirs(hook: str, verdict: str, handle: int = 5) -> Traced:
    return Traced("inet", "filter", hook, handle, verdict, hook, "tcp dport 9000 drop", 0, 9)


def way(*chains: str, **facts) -> list[Traced]:
    return [word for chain in chains for word in ours(chain, **facts)]


ARRIVED = way("prerouting_first", "prerouting_last", "input_first", "input_last")


def names(points) -> list[tuple[str, str]]:
    return [(each.kind, each.hook) for each in points]


def test_a_delivered_packet_has_the_same_points():
    """Each hook is entered and left once, although each chain of ours has two words."""
    computed = computed_points(diagnosed(HEALTHY).forward)
    kernel = kernel_points(ARRIVED, NAMES.get)
    assert names(computed) == names(kernel) == [
        (ENTERS, "prerouting"), (LEAVES, "prerouting"), (ENTERS, "input"), (LEAVES, "input"),
    ]  # fmt: skip
    assert all(each.same for each in compare(computed, kernel))


@pytest.mark.parametrize(
    ("snapshot", "index", "same"), [(HEALTHY, 2, True), (HEALTHY, 3, False), (wg_quicked(), 3, True)]
)
def test_an_answer_differs_by_its_interface(snapshot, index, same):
    """Computed out of one interface and seen out of another: the difference is where it leaves postrouting."""
    reply = diagnosed(snapshot).reply
    words = way("output_first", "output_last", "postrouting_first", ends=ENDS.turned())
    words += ours("postrouting_last", ends=ENDS.turned(), oif=index)
    compared = compare(computed_points(reply), kernel_points(words, NAMES.get))
    found = first_difference(compared)
    assert (found is None) == same
    if found is not None:
        assert (found.named.kind, found.named.hook) == (LEAVES, "postrouting")


def test_a_drop_where_none_was_computed():
    """The difference is the input hook's end, with the kernel's rule; what follows is not compared."""
    words = [*way("prerouting_first", "prerouting_last", "input_first"), theirs("input", "drop")]
    compared = compare(computed_points(diagnosed(HEALTHY).forward), kernel_points(words, NAMES.get))
    found = first_difference(compared)
    assert found is not None
    assert names([found.computed, found.kernel]) == [(LEAVES, "input"), (LOST, "input")]
    assert "tcp dport 9000 drop (table inet filter chain input)" in found.kernel.spelled()


@pytest.mark.parametrize(("handle", "same"), [(2, True), (5, False)])
def test_another_rule_dropped_it(handle, same):
    """The same hook, but another rule: that is a difference too."""
    computed = computed_points(diagnosed(filtered(HEALTHY, "input", [{"drop": None}])).forward)
    words = [*way("prerouting_first", "prerouting_last", "input_first"), theirs("input", "drop", handle)]
    assert (first_difference(compare(computed, kernel_points(words, NAMES.get))) is None) == same


@pytest.mark.parametrize("mark", [0, 7])
def test_a_mark_counts(mark):
    """A rule of prerouting sets it: it is 0 as the packet enters, and 7 as it leaves, in both or in one."""
    found = diagnosed(filtered(HEALTHY, "prerouting", SET_MARK))
    computed = computed_points(found.forward)
    words = way("prerouting_first") + way("prerouting_last", "input_first", "input_last", mark=mark)
    compared = compare(computed, kernel_points(words, NAMES.get))
    assert [each.facts["mark"] for each in computed] == ["0", "0x7", "0x7", "0x7"]
    assert [each.same for each in compared][:2] == [True, mark == 7]


def test_behind_prerouting():
    """Strict rp_filter: lost behind the hook; the drop reason is compared where it has a code, and else not."""
    found = diagnosed(settled(wg_quicked(), eth0_rp_filter=1))
    words = way("prerouting_first", "prerouting_last")
    computed = computed_points(found.forward)
    for reasons, code in ((["IP_RPFILTER"], "rp-filter"), (["NOT_SPECIFIED"], None), ([], None)):
        kernel = kernel_points(words, NAMES.get, reasons)
        assert (kernel[-1].kind, kernel[-1].hook, kernel[-1].facts.get("code")) == (BEHIND, "prerouting", code)
        assert first_difference(compare(computed, kernel)) is None
    delivered = computed_points(diagnosed(HEALTHY).forward)
    assert first_difference(compare(delivered, kernel)).computed.kind == ENTERS


def test_legacy_iptables_says_nothing():
    """Lost between the beginning and the end of a hook without a word: said so, and no other place."""
    kernel = kernel_points(way("prerouting_first", "prerouting_last", "input_first"), NAMES.get, ["NETFILTER_DROP"])
    assert (kernel[-1].kind, kernel[-1].hook) == (LOST, "input")
    assert "iptables-legacy" in kernel[-1].by
    assert "NETFILTER_DROP" in kernel[-1].by


def test_an_answer_that_is_not_sent():
    """No word of it: the same as computed when no route was found, a difference when one was."""
    nothing = kernel_points(())
    assert names(nothing) == [(NEVER, "")]
    healthy = diagnosed(HEALTHY)
    assert first_difference(compare(computed_points(healthy.reply), nothing)) is not None


def test_what_the_model_does_not_know_is_no_difference():
    """Nothing after it is called same or different."""
    computed = (Point(ENTERS, "prerouting"), Point(UNKNOWN, by="a match nobody knows"))
    compared = compare(computed, kernel_points(ARRIVED, NAMES.get))
    assert [each.same for each in compared] == [True, None, None, None]
    assert first_difference(compared) is None


def test_facts_of_one_side_alone_are_no_difference():
    """The kernel tells addresses once a chain, the model no conntrack reason: only what both know counts."""
    one, other = Point(ENTERS, "input", {"mark": "0"}), Point(ENTERS, "input", {"packet": "x"})
    assert first_difference(compare([one], [other])) is None
