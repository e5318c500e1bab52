# SPDX-License-Identifier: Apache-2.0
"""Every red names the code and the very rule, as the model finds it in the place as it is now: beside a door and without."""

from __future__ import annotations

import json

import pytest

from netns.agents import AgentPod, poll

# What is done to the pod, the check that it makes red, the code, and the rule as its own tool lists it.
FAULTS = {
    "iptables-nft drops in INPUT": (
        ("iptables-nft -A INPUT -p udp --dport 51820 -j DROP",), ("iptables-nft -D INPUT -p udp --dport 51820 -j DROP",),
        "handshake-ipv4", "input-drop", "-A INPUT -p udp -m udp --dport 51820 -j DROP",
    ),
    "nft drops the balancer": (
        (
            "nft add table inet foreign", "nft 'add chain inet foreign early { type filter hook prerouting priority -250; }'",
            "nft add rule inet foreign early iifname eth0 tcp dport 8080 drop",
        ),
        ("nft delete table inet foreign",),
        "balancer-ipv4", "prerouting-drop", 'iifname "eth0" tcp dport 8080 drop',
    ),
    "the way out is closed": (
        ("iptables-nft -A FORWARD -i wg0 -j DROP",), ("iptables-nft -D FORWARD -i wg0 -j DROP",),
        "egress-ipv4", "forward-drop", "-A FORWARD -i wg0 -j DROP",
    ),
}  # fmt: skip
WITHOUT_DOOR = {"handshake-ipv4": ("arrival-ipv4", "reply-ipv4"), "egress-ipv4": ("forwarding-ipv4",)}


def ask(pod, path="/healthz", accept="*/*"):
    """The answer as the pod's own user gets it: the faults here may keep others from asking."""
    url = f"http://{pod.net.pod4}:8080{path}"
    return pod.pod.run("curl", "-s", "-m", "2", "-H", f"Accept: {accept}", url, check=False).stdout


def verdict(pod):
    """The JSON."""
    return json.loads(ask(pod, accept="application/json") or "{}")


@pytest.fixture(scope="module", params=["auto", "never"])
def pod(request, tmp_path_factory):
    """A gateway at level egress, with a door and without."""
    with AgentPod("vpc", tmp_path_factory.mktemp("why")) as made:
        made.door = request.param
        made.up("--level", "egress", "--door", made.door)
        poll(lambda: verdict(made).get("ready"), message=f"green first: {ask(made, '/healthz?verbose')}")
        assert verdict(made)["evidence"] == ("door" if made.door == "auto" else "model")
        yield made
        assert made.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_red_names_the_very_rule(pod, name):
    """The check says which rule it is, as text and as JSON; when the rule is gone it is green again."""
    does, undoes, red, code, rule = FAULTS[name]
    names = (red,) if pod.door == "auto" else WITHOUT_DOOR.get(red, (red,))

    def blamed():
        checks = verdict(pod)["checks"]
        return [c for c in checks if c["name"] in names and c["state"] == "fail" and rule in (c["where"] or "")]

    pod.pod.run("sh", "-ec", "\n".join(does))
    try:
        found = poll(blamed, message=f"{name}: {verdict(pod)}")
        assert {check["cause"] for check in found} == {code}
        text = ask(pod, "/healthz?verbose")
        assert rule in text
        assert ask(pod).split() == verdict(pod)["causes"], "the plain body has codes alone"
    finally:
        pod.pod.run("sh", "-ec", "\n".join(undoes))
    poll(lambda: verdict(pod)["ready"], message=f"{name}: green again")


@pytest.mark.slow
def test_what_the_model_may_not_read_is_said(tmp_path):
    """iptables-legacy lists with CAP_NET_RAW alone: the door's counters name the code, and no rule is guessed."""
    with AgentPod("bridge", tmp_path) as made:
        made.up()
        poll(lambda: verdict(made).get("ready"), message="green first")
        made.pod.run("iptables-legacy", "-A", "OUTPUT", "-p", "udp", "--sport", "51820", "-j", "DROP")
        checks = poll(
            lambda: [c for c in verdict(made)["checks"] if c["cause"] == "output-drop" and "model" in c["detail"]]
        )
        assert {check["where"] for check in checks} == {None}
        assert all("iptables-legacy-save" in check["detail"]["model"] for check in checks)
        assert made.stop() == 0


@pytest.mark.slow
def test_a_limit_that_no_client_meets_is_not_red(pod):
    """What the model cannot know of a rate limit is no fault: green, and without a door it is said."""
    rules = "nft add table inet foreign\nnft 'add chain inet foreign in { type filter hook input priority -5; }'\n"
    limit = "nft add rule inet foreign in udp dport 51820 limit rate over 1000/second drop"
    pod.pod.run("sh", "-ec", rules + limit)
    try:
        if pod.door == "never":
            poll(
                lambda: [c for c in verdict(pod)["checks"] if "a limit stands in the way" in c["evidence"]],
                message=str(verdict(pod)),
            )
        assert verdict(pod)["ready"]
    finally:
        pod.pod.run("nft", "delete", "table", "inet", "foreign")
