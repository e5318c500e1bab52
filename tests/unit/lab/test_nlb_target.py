# SPDX-License-Identifier: Apache-2.0
"""The load balancer stand-in without a kernel: states, settings, the nft text, conntrack lines, the view."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from wicketgate.errors import InputError
from wicketgate.lab.nlb.conntrack import parse_line
from wicketgate.lab.nlb.control import LoadBalancer
from wicketgate.lab.nlb.dataplane import Backend, mark_of, render
from wicketgate.lab.nlb.settings import Checker, CheckSettings, Listener, NlbSettings, Target
from wicketgate.lab.nlb.status import FlowStatus, NlbStatus, ProbeStatus, TargetStatus
from wicketgate.lab.nlb.target import Probe, Reason, State, TargetHealth, fails_open, is_serving
from wicketgate.lab.nlb.view import render as show

A, B, C = (ip_address(f"10.3.0.{n}") for n in (1, 2, 3))
PASS = Probe(None, "HTTP 200")
REFUSED = Probe(Reason.FAILED_HEALTH_CHECKS, "refused")
SILENT = Probe(Reason.TIMEOUT, "silent")
WRONG = Probe(Reason.RESPONSE_CODE_MISMATCH, "[503]")
thresholds = st.integers(1, 10)
outcomes = st.lists(st.sampled_from([PASS, REFUSED, SILENT, WRONG]), max_size=60)


def health(*checkers, healthy=2, unhealthy=2, used=True):
    return TargetHealth(checkers or (A,), healthy_threshold=healthy, unhealthy_threshold=unhealthy, used=used)


def naive(history: list[bool], healthy: int, unhealthy: int) -> State:
    """One checker, told from the whole history each time: where did the state last change, what came since?"""
    state, since = State.INITIAL, 0
    for end in range(1, len(history) + 1):
        recent = history[since:end]
        if state is State.INITIAL and recent[-1]:
            state, since = State.HEALTHY, end
        elif state is State.UNHEALTHY and len(recent) >= healthy and all(recent[-healthy:]):
            state, since = State.HEALTHY, end
        elif state is not State.UNHEALTHY and len(recent) >= unhealthy and not any(recent[-unhealthy:]):
            state, since = State.UNHEALTHY, end
    return state


@given(outcomes, thresholds, thresholds)
def test_one_checker_follows_the_thresholds(history, healthy, unhealthy):
    """After every outcome the state is the one that the thresholds give for the whole history."""
    target = health(healthy=healthy, unhealthy=unhealthy)
    for count, outcome in enumerate(history, 1):
        before = target.state
        changed = target.observe(A, outcome)
        assert target.state is naive([one.passed for one in history[:count]], healthy, unhealthy)
        assert changed == (target.state is not before)
    assert target.probes == len(history)


@given(st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([PASS, REFUSED]))), thresholds, thresholds)
def test_first_success_of_any_checker_is_enough(history, healthy, unhealthy):
    """An `initial` target is healthy with the first success of whichever checker, whatever the thresholds."""
    target = health(A, B, C, healthy=healthy, unhealthy=unhealthy)
    for checker, outcome in history:
        was = target.state
        target.observe(checker, outcome)
        if was is State.INITIAL and outcome.passed:
            assert target.state is State.HEALTHY


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.sampled_from([PASS, REFUSED, SILENT])), max_size=80),
    thresholds,
    thresholds,
)
def test_a_minority_of_checkers_changes_nothing(history, healthy, unhealthy):
    """A healthy target whose one checker of three always fails stays healthy, and an unhealthy one is not cured by one."""
    well, ill = (
        health(A, B, C, healthy=healthy, unhealthy=unhealthy),
        health(A, B, C, healthy=healthy, unhealthy=unhealthy),
    )
    well.observe(A, PASS)
    for _ in range(unhealthy):
        for checker in (A, B, C):
            ill.observe(checker, REFUSED)
    assert (well.state, ill.state) == (State.HEALTHY, State.UNHEALTHY)
    for checker, _ in history:
        well.observe(checker, REFUSED if checker == A else PASS)
        ill.observe(checker, PASS if checker == A else REFUSED)
        assert (well.state, ill.state) == (State.HEALTHY, State.UNHEALTHY)


@given(outcomes)
def test_reason_is_that_of_the_last_failure(history):
    """A healthy target has no reason, an unhealthy one that of its newest failure, an `initial` one is being checked."""
    target = health()
    failure = None
    for outcome in history:
        failure = outcome.failure or failure
        target.observe(A, outcome)
        match target.state:
            case State.HEALTHY:
                assert target.reason is None
            case State.UNHEALTHY:
                assert target.reason is failure
            case _:
                assert target.reason is Reason.INITIAL_HEALTH_CHECKING


@given(outcomes, outcomes)
def test_draining_does_not_listen(before, after):
    """A deregistered target stays `draining` whatever probes say, and only a healthy one keeps its flows."""
    target = health()
    for outcome in before:
        target.observe(A, outcome)
    healthy = target.state is State.HEALTHY
    assert target.deregister() == healthy
    for outcome in after:
        assert not target.observe(A, outcome)
    assert (target.state, target.reason) == (State.DRAINING, Reason.DEREGISTRATION_IN_PROGRESS)


def test_unused_zone():
    """A target of a zone without a load balancer node is unused and never judged."""
    target = health(used=False)
    assert not target.observe(A, PASS)
    assert (target.state, target.reason) == (State.UNUSED, Reason.NOT_IN_USE)


@given(st.lists(st.sampled_from(State), max_size=6))
def test_who_serves(states):
    """Healthy targets alone serve if there are any; else all registered ones do once one was judged; draining never."""
    served = [state for state in states if is_serving(state, fail_open=fails_open(states))]
    if State.HEALTHY in states:
        assert set(served) == {State.HEALTHY}
    elif State.UNHEALTHY in states:
        assert served == [state for state in states if state in {State.UNHEALTHY, State.INITIAL}]
    else:
        assert served == []


def settings(**changes) -> NlbSettings:
    return NlbSettings(**{
        "addresses": (ip_address("10.1.0.10"),),
        "listeners": (Listener("udp", 51820), Listener("tcp", 9000, 9000)),
        "checkers": (Checker(A, "a"), Checker(B, "b")),
        "targets": (Target.parse("10.2.1.2:51820"),),
        **changes,
    })  # fmt: skip


def test_settings_survive_json():
    """Settings written as JSON are read back the same."""
    first = settings(check=CheckSettings(port=8080, path="/healthz", matcher="200,204"), deregistration_delay=1.5)
    assert NlbSettings.from_json(first.to_json()) == first


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"addresses": ["10.0.0.300"], "listeners": [], "checkers": []}', "addresses.0"),
        (
            '{"addresses": ["10.0.0.1"], "listeners": [{"protocol": "sctp", "port": 1}], "checkers": []}',
            "'udp' or 'tcp'",
        ),
        ('{"addresses": [], "listeners": [], "checkers": []}', "at least one"),
    ],
)
def test_bad_json_names_the_field(text, says):
    """What cannot be read is said with its place, as InputError."""
    with pytest.raises(InputError, match=says):
        NlbSettings.from_json(text)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "x; flush ruleset"}, "name"),
        ({"targets": (Target.parse("[fd00::2]:51820"),)}, "both families"),
        ({"targets": (Target.parse("10.2.1.2:1"), Target.parse("10.2.1.2:1"))}, "twice"),
        ({"listeners": (Listener("udp", 1), Listener("udp", 1))}, "twice"),
        ({"listeners": (Listener("udp", 0),)}, "1 to 65535"),
        ({"check": CheckSettings(interval=0)}, "check.interval"),
        ({"check": CheckSettings(healthy_threshold=11)}, "healthy_threshold"),
        ({"check": CheckSettings(path="/ HTTP/1.1\r\nX: y")}, "check.path"),
        ({"check": CheckSettings(matcher="200-")}, "matcher"),
        ({"check": CheckSettings(port=70000)}, "check.port"),
        ({"deregistration_delay": -1.0}, "deregistration_delay"),
        ({"udp_idle": 0}, "udp_idle"),
    ],
)
def test_settings_refuse_what_cannot_work(changes, says):
    """Every impossible setting is refused with its name."""
    with pytest.raises(InputError, match=says):
        settings(**changes)


def test_all_problems_at_once():
    """Two mistakes are two lines of one error."""
    with pytest.raises(InputError) as caught:
        settings(udp_idle=0, deregistration_delay=4000.0)
    assert len(str(caught.value).splitlines()) == 2


@given(st.integers(100, 599))
def test_default_matcher_lets_redirects_pass(code):
    """200-399 pass by default, as on AWS: a redirect counts as healthy."""
    assert CheckSettings().matches(code) == (200 <= code <= 399)
    assert CheckSettings(matcher="204,300-302").matches(code) == (code in {204, 300, 301, 302})


@pytest.mark.parametrize("text", ["10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "fd00::1:5", "x:5", ":5", "10.0.0.1:5\n"])
def test_target_text_is_checked(text):
    """What is no ADDRESS:PORT is refused."""
    with pytest.raises(InputError):
        Target.parse(text)


@given(st.ip_addresses(), st.integers(1, 65535))
def test_target_text_round_trip(address, port):
    """A target is spelled as it is read."""
    target = Target(address, port)
    assert Target.parse(str(target)) == target


def test_table_names_the_serving_targets_alone():
    """New flows are hashed among the targets in service, per listener; the source is never rewritten."""
    one, two = Backend(1, Target.parse("10.2.1.2:51820")), Backend(2, Target.parse("10.2.2.2:51820"))
    script = render(settings(), (one, two), (one.target, two.target))
    assert "snat" not in script
    assert "masquerade" not in script
    assert "dnat to 10.2.2.2:9000" in script
    assert script.count("jhash") == 2
    assert "jhash" not in render(settings(), (one,), (one.target,))
    assert "dnat" not in render(settings(), (), (one.target,))


async def test_checkers_probe_on_phases_of_their_own(monkeypatch):
    """The first probes of a target's checkers are spread over the interval."""
    phases = {}

    async def note(self, member, checker, phase):
        phases[checker.az] = phase

    monkeypatch.setattr(LoadBalancer, "_check", note)
    balancer = LoadBalancer(settings(check=CheckSettings(interval=0.5)))
    async with asyncio.TaskGroup() as group:
        for member in balancer._members.values():
            balancer._watch(group, member)
    assert phases == {"a": 0.0, "b": 0.25}


def test_marks_tell_balancers_and_targets_apart():
    """Two load balancers of one host, and two targets of one, have different conntrack marks."""
    assert len({mark_of("a", 1), mark_of("a", 2), mark_of("b", 1), mark_of("b", 2)}) == 4


def test_conntrack_lines():
    """A line of `conntrack -L -o extended` is read: the answer's source is the target."""
    flow = parse_line(
        "ipv4     2 udp      17 117 src=10.1.0.2 dst=10.1.0.10 sport=40000 dport=51820 packets=3 bytes=99 "
        "src=10.2.1.2 dst=10.1.0.2 sport=51821 dport=40000 packets=2 bytes=66 [ASSURED] mark=65537 use=1"
    )
    assert flow is not None
    assert (str(flow.client), flow.client_port, str(flow.address), flow.port) == ("10.1.0.2", 40000, "10.1.0.10", 51820)
    assert (str(flow.target), flow.target_port, flow.mark, flow.expires) == ("10.2.1.2", 51821, 65537, 117)
    assert (flow.packets, flow.replies) == (3, 2)
    tcp = parse_line(
        "ipv4     2 tcp      6 300 ESTABLISHED src=10.1.0.2 dst=10.1.0.10 sport=5 dport=9000 "
        "src=10.2.1.2 dst=10.1.0.2 sport=9000 dport=5 [ASSURED] mark=65537 use=1"
    )
    assert tcp is not None
    assert (tcp.protocol, tcp.expires, tcp.packets) == ("tcp", 300, 0)
    assert parse_line("ipv4     2 icmp     1 29 src=1.1.1.1 dst=1.1.1.2 type=8 code=0 id=1 mark=0 use=1") is None
    assert parse_line("") is None


def status() -> NlbStatus:
    probe = ProbeStatus(A, "a", passed=False, description="Health checks failed with these codes: [503]", seconds=0.001)
    return NlbStatus(
        name="nlb",
        fail_open=True,
        targets=(
            TargetStatus(
                ip_address("10.2.1.2"), 51820, "a", State.UNHEALTHY, Reason.RESPONSE_CODE_MISMATCH,
                "Health checks failed with these codes: [503]", serving=True, flows=1, probes=7, state_seconds=3.2,
                last=(probe,),
            ),
        ),
        flows=(FlowStatus("udp", ip_address("10.1.0.2"), 4000, ip_address("10.1.0.10"), 51820, ip_address("10.2.1.2"), 51820, 3, 2, 118),),
        listeners=("udp 51820 -> target port",),
    )  # fmt: skip


def test_status_survives_json():
    """A status written as JSON is read back the same, and it is one line."""
    assert NlbStatus.from_json(status().to_json()) == status()
    assert "\n" not in status().to_json()
    with pytest.raises(InputError, match="targets"):
        NlbStatus.from_json('{"name": "x", "fail_open": false, "targets": 1, "flows": []}')
    with pytest.raises(InputError, match=r"no target 10\.9\.9\.9; registered: 10\.2\.1\.2"):
        status().target("10.9.9.9")


def test_view_says_what_matters():
    """The tables show state, reason, fail-open and the flow's way."""
    console = Console(width=220, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(show(status()))
        text = console.export_text()
    for word in (
        "unhealthy",
        "Target.ResponseCodeMismatch",
        "[503]",
        "fail-open",
        "10.1.0.2:4000",
        "10.2.1.2:51820",
        "118 s",
    ):
        assert word in text
