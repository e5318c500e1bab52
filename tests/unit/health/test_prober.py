# SPDX-License-Identifier: Apache-2.0
"""Rounds of probes with doors, a client and a subject of our own: what is tried, what is published, what is survived."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from types import SimpleNamespace

import pytest

from unit.health.probe_fakes import PATH4, Client, Doors, Sock, Stand, Subject
from wicketgate.errors import StateError
from wicketgate.health import prober as module
from wicketgate.health import stranger
from wicketgate.health.cause import Cause
from wicketgate.health.check import State
from wicketgate.health.door import Loss, Outcome, TcpAnswer
from wicketgate.health.flow_model import Opinion
from wicketgate.wireguard.failure import Step


@pytest.fixture(autouse=True)
def client(monkeypatch):
    Client.handshakes, Client.answers, Client.failing = [], [], {}
    monkeypatch.setattr(stranger, "SyntheticClient", Client)

    names = {n: getattr(socket, n) for n in ("AF_INET", "AF_INET6", "SOCK_DGRAM", "SOCK_NONBLOCK")}
    monkeypatch.setattr(module, "socket", SimpleNamespace(socket=lambda *_: Sock(), **names))
    return Client


@pytest.fixture
def stand():
    return lambda *families, **more: Stand(Doors(*families), Subject(**more))


async def test_a_good_round_proves_all_of_it(stand):
    """Handshake and echo as a stranger in both families, the balancer's way, evidence `door`."""
    at = stand(4, 6)
    await at.round()
    assert at.verdict.ready
    assert at.verdict.evidence == "door"
    assert set(at.checks) == {f"{n}-ipv{f}" for n in ("handshake", "tunnel", "balancer") for f in (4, 6)}


async def test_a_family_without_a_door_is_judged_by_the_model(stand):
    """One door stands, the other does not: every check once, and the evidence is the weaker of the two."""
    at = stand(4, 6)
    at.doors.doors[6] = None
    await at.round()
    assert at.verdict.ready
    assert at.verdict.evidence == "model"
    assert "over lo" in at.checks["handshake-ipv6"].evidence
    assert "as a stranger" in at.checks["handshake-ipv4"].evidence
    assert at.checks["balancer-ipv6"].evidence == "asked"


async def test_a_door_that_was_demanded_is_not_replaced(stand):
    """--door always: unknown, and unknown is red."""
    at = stand(4)
    at.doors.doors[4], at.doors.demanded = None, True
    await at.round()
    assert at.checks["handshake-ipv4"].state is State.UNKNOWN
    assert "no act_mirred" in at.checks["handshake-ipv4"].evidence


@pytest.mark.parametrize("trouble", [StateError("the device is gone"), OSError(9, "Bad file descriptor"), KeyError(4)])
async def test_whatever_goes_wrong_is_a_red_round_and_not_the_end(stand, trouble):
    """Unknown, red, and green again when it is over."""
    at = stand(4)
    await at.round()
    at.subject.trouble = trouble
    await at.round()
    assert not at.verdict.ready
    assert Cause.STATE_UNREADABLE in at.verdict.causes
    at.subject.trouble = None
    await at.round()
    assert at.verdict.ready


async def test_a_door_built_meanwhile_is_no_evidence_against_anybody(stand):
    """The round is made again when a door changed in it."""
    at = stand(4)
    door = at.doors.doors[4]
    check = door.tcp_check

    async def torn(*arguments, **more):
        door.tcp_check = check
        at.doors.generation += 1
        return TcpAnswer(Outcome.SILENT, 0.0, None, "nothing")

    door.tcp_check = torn
    await at.round()
    assert at.verdict.ready


async def test_what_was_mended_is_probed_again_in_the_same_round(stand):
    """A probe peer that `wg syncconf` took away: put back, probed, green, and the caller is told to look around."""
    at = stand(4)
    at.subject.mended = True
    Client.answers = [Step.SILENT, Step.SILENT]
    assert await at.round()
    assert at.verdict.ready
    assert at.subject.mends == 1


async def test_a_mend_that_fails_does_not_hide_what_was_found(stand):
    """A stopped device answers neither: the cause is the probe's."""
    at = stand(4)
    at.subject.mend_trouble = StateError("wg0.sock: no answer within 5 s")
    Client.answers = [Step.SILENT, Step.SILENT]
    await at.round()
    assert Cause.HANDSHAKE_SILENT in at.verdict.causes


async def test_silence_is_asked_twice_and_where_it_goes_on_once(stand):
    """One lost datagram is not red; a silent device does not make rounds longer than they need be."""
    at = stand(4)
    Client.answers = [Step.SILENT]
    await at.round()
    assert at.verdict.ready
    assert len(Client.handshakes) == 2
    Client.answers = [Step.SILENT] * 10
    await at.round()
    assert not at.verdict.ready
    Client.handshakes.clear()
    await at.round()
    assert len(Client.handshakes) == 1


async def test_a_cookie_is_an_answer(stand):
    """Under load: the second try has longer, as the client pauses after a cookie; then it is green."""
    at = stand(4)
    Client.answers = [Step.UNDER_LOAD]
    await at.round()
    assert at.verdict.ready
    assert Client.handshakes[1] > 1.0


@pytest.mark.parametrize(
    ("step", "cause"),
    [
        (Step.REFUSED, Cause.NO_LISTENER),
        (Step.WRONG_PSK, Cause.KEY_MISMATCH),
        (Step.MALFORMED, Cause.KEY_MISMATCH),
        (Step.UNREACHABLE, Cause.REPLY_UNROUTABLE),
    ],
)
async def test_each_failing_step_has_its_cause(stand, step, cause):
    """Not silence: what was answered."""
    at = stand(4)
    Client.answers = [step, step]
    await at.round()
    assert cause in at.verdict.causes


async def test_the_kernels_answers_and_the_doors_counters_give_the_cause(stand):
    """Routing first, as it tells the very rule; then the counters, which see firewalls."""
    at = stand(4)
    Client.answers = [Step.SILENT] * 10
    at.doors.doors[4].loss = Loss(Cause.INPUT_DROP, "a rule in INPUT drops it", 1)
    await at.round()
    assert at.checks["handshake-ipv4"].cause is Cause.INPUT_DROP
    assert "INPUT drops it" in at.checks["handshake-ipv4"].evidence
    at.explainer.cause = Cause.REPLY_INTO_TUNNEL
    await at.round()
    assert at.checks["handshake-ipv4"].cause is Cause.REPLY_INTO_TUNNEL


async def test_the_way_out_has_an_account_of_its_own(stand):
    """A dropped FORWARD is told by the out probe's counters, and the good checks stay good."""
    at = stand(4, level="egress", egress_paths=(PATH4,))
    await at.round()
    assert at.verdict.ready
    Client.failing = {"echo": Step.NO_ECHO}
    at.doors.doors[4].loss_out = Loss(Cause.FORWARD_DROP, "a rule drops it", 1)
    await at.round()
    assert at.checks["egress-ipv4"].cause is Cause.FORWARD_DROP
    assert at.checks["handshake-ipv4"].state is State.PASS


async def test_an_account_is_asked_for_now_and_then(stand):
    """The door counts for everybody when it is asked: once in ten seconds of the same red, at once for another one."""
    at = stand(4)
    door = at.doors.doors[4]
    door.loss = Loss(Cause.INPUT_DROP, "a rule in INPUT drops it", 1)
    Client.answers = [Step.SILENT] * 100
    for _ in range(10):
        await at.round()
        assert at.checks["handshake-ipv4"].cause is Cause.INPUT_DROP
    assert door.accounts == 1
    await at.round()
    assert door.accounts == 2
    door.outcome = Outcome.SILENT
    await at.round()
    assert door.accounts == 3
    Client.answers = []
    door.outcome = Outcome.ANSWERED
    await at.round()
    assert at.verdict.ready
    Client.answers = [Step.SILENT] * 100
    await at.round()
    assert door.accounts == 4


async def test_an_account_repeats_what_failed(stand):
    """The door counts a probe that is made for it: what the red was about, and no long wait for its answer."""
    at = stand(4)
    Client.answers = [Step.SILENT] * 10
    await at.round()
    assert len(Client.handshakes) == 3
    assert Client.handshakes[-1] <= 0.1
    Client.answers, Client.handshakes = [], []
    at.doors.doors[4].outcome = Outcome.SILENT
    await at.round()
    assert at.doors.doors[4].accounts == 2
    assert len(Client.handshakes) == 1, "only the port was silent"


async def test_the_missing_default_route_is_a_finding(stand):
    """No socket can be made: what every client's answer meets as well."""
    at = stand(4)
    at.doors.doors[4].no_route = True
    await at.round()
    assert at.checks["handshake-ipv4"].cause is Cause.REPLY_UNROUTABLE


@pytest.mark.parametrize("demanded", [False, True])
@pytest.mark.parametrize(
    "said", [Opinion(True), Opinion(False, "reply-unroutable", "unreachable default"), Opinion(False, words="?")]
)
async def test_a_rule_for_our_own_half_alone_is_no_finding(stand, said, demanded):
    """What we send has no way, and the model says that clients' answers have one: then it is the evidence; else it is red."""
    at = stand(4)
    at.doors.doors[4].no_route = True
    at.doors.demanded = demanded
    at.model.opinions = {"handshake": said, "balancer": said}
    await at.round()
    if said.works and not demanded:
        assert at.verdict.ready
        assert at.verdict.evidence == "model"
        assert at.checks["reply-ipv4"].state is State.PASS
    else:
        assert not at.verdict.ready
        assert at.checks["handshake-ipv4"].cause is Cause.REPLY_UNROUTABLE


@pytest.mark.parametrize("port", [0, 443])
@pytest.mark.parametrize("by_door", [True, False])
async def test_the_outside_host_is_tried_while_the_session_stands(stand, port, by_door):
    """Once a round, in the first session that works, by ping or TCP; without a session it is red."""
    at = stand(4, 6, outside=(ip_address("198.51.100.1"), port))
    if not by_door:
        at.doors.doors = {4: None, 6: None}
    await at.round()
    assert at.verdict.ready
    assert at.checks["outside"].state is State.PASS
    Client.failing = {"198.51.100.1": Step.NO_ECHO}
    await at.round()
    assert at.checks["outside"].cause is Cause.EGRESS_UNREACHABLE
    Client.failing, Client.answers = {}, [Step.SILENT] * 20
    await at.round()
    assert "not tried" in at.checks["outside"].evidence


async def test_without_a_probe_peer_nothing_is_claimed(stand):
    """The sidecar without any right at level tunnel."""
    at = stand(4, identity=None)
    await at.round()
    assert at.checks["handshake"].state is State.UNKNOWN
    assert at.verdict.evidence == "model"


async def test_level_port_says_that_it_is_weaker(stand):
    """What is bound and where replies go: evidence `port`."""
    at = stand(4, level="port", identity=None)
    await at.round()
    assert at.verdict.ready
    assert (at.verdict.level, at.verdict.evidence) == ("port", "port")


async def test_no_uplink_is_red(stand):
    """Nothing to be reached at."""
    at = stand()
    await at.round()
    assert at.checks["uplink"].cause is Cause.ADDRESS_MISSING


async def test_a_family_that_goes_for_good_is_not_missed_for_ever(stand):
    """The uplink lost IPv6: what is left is judged; when it comes back it counts again."""
    at = stand(4, 6)
    await at.round()
    six = at.doors.doors.pop(6)
    await at.round()
    assert at.verdict.ready
    at.doors.doors[6] = six
    Client.answers = [None, *[Step.SILENT] * 5]
    await at.round()
    assert not at.verdict.ready


async def test_the_wall_clock_set_back_changes_nothing(stand):
    """Ages are monotonic: an hour back, or a year, is no evidence of anything."""
    at = stand(4)
    await at.round()
    at.clock.set_wall(1.0)
    await at.round()
    assert at.verdict.ready
    at.clock.advance(3.1)
    assert not at.board.verdict().ready
