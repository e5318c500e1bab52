# SPDX-License-Identifier: Apache-2.0
"""Random commands that change a place, in bursts."""

from __future__ import annotations

from hypothesis import strategies as st

LINKS = ("e0", "e1")

interfaces = st.sampled_from(LINKS)
prefixes = st.sampled_from(["10.1.0.0/16", "10.2.0.0/24", "default", "10.0.0.9/32"])
prefixes6 = st.sampled_from(["2001:db8:1::/64", "2001:db8:2::/48", "default"])
tables = st.sampled_from(["main", "51820", "7"])
verbs = st.sampled_from(["add", "replace", "del"])
COMMANDS = st.one_of(
    st.builds("ip link set {} {}".format, interfaces, st.sampled_from(["up", "down", "mtu 1400", "mtu 1500", "alias x"])),
    st.builds("ip address {} 10.0.{}.1/24 dev {}".format, st.sampled_from(["add", "del"]), st.integers(0, 2), interfaces),
    st.builds("ip address {} 2001:db8::{}/64 dev {}".format, st.sampled_from(["add", "del"]), st.integers(1, 3), interfaces),
    st.builds("ip route {} {} dev {} table {}".format, verbs, prefixes, interfaces, tables),
    st.builds("ip route {} {} via 10.0.0.{} table {}".format, verbs, prefixes, st.integers(2, 4), tables),
    st.builds("ip route {} blackhole {} table {}".format, verbs, prefixes, tables),
    st.builds("ip route {} 10.3.0.0/16 nexthop dev e0 nexthop dev e1 weight {}".format, verbs, st.integers(1, 3)),
    st.builds("ip -6 route {} {} dev {} table {}".format, verbs, prefixes6, interfaces, tables),
    st.builds(
        "ip {} rule {} {} lookup {} pref {}".format,
        st.sampled_from(["-4", "-6"]),
        st.sampled_from(["add", "del"]),
        st.sampled_from(["not fwmark 51820", "iif e0", "ipproto tcp sport 9000"]),
        tables,
        st.integers(100, 103),
    ),
    st.builds("ip nexthop {} id {} via 10.0.0.7 dev e0".format, st.sampled_from(["replace", "del"]), st.integers(1, 2)),
    st.builds("ip route {} 10.4.{}.0/24 nhid {}".format, verbs, st.integers(0, 1), st.integers(1, 2)),
    st.builds("ip neigh replace 10.0.0.{} lladdr 02:00:00:00:00:0{} dev e0".format, st.integers(5, 6), st.integers(1, 2)),
    st.builds(
        "sysctl -qw net.ipv4.conf.{}.{}={}".format,
        st.sampled_from(["all", "default", *LINKS]),
        st.sampled_from(["rp_filter", "src_valid_mark", "forwarding", "accept_local"]),
        st.integers(0, 1),
    ),
    st.builds("sysctl -qw net.ipv6.conf.{}.disable_ipv6={}".format, st.sampled_from(["all", *LINKS]), st.integers(0, 1)),
    st.builds("nft {} table inet t{}".format, st.sampled_from(["add", "delete"]), st.integers(0, 1)),
    st.builds("nft '{} chain inet t0 c {{ type filter hook input priority 0; }}'".format, st.sampled_from(["add", "create"])),
    st.builds("nft {} rule inet t0 c tcp dport {} drop".format, st.sampled_from(["add", "insert"]), st.integers(1, 3)),
    st.builds(
        "{} {} INPUT -p tcp --dport {} -j DROP".format,
        st.sampled_from(["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"]),
        st.sampled_from(["-A", "-D", "-I"]),
        st.integers(1, 2),
    ),
    st.builds("iptables-legacy -t {} -F".format, st.sampled_from(["nat", "mangle", "filter"])),
    st.just("ip link del e0"),
    st.just("ip link add e0 type veth peer name e1"),
    st.builds("ip link {}".format, st.sampled_from(["add br0 type bridge", "del br0", "set e1 master br0", "set e1 nomaster"])),
)  # fmt: skip
BURSTS = st.lists(st.lists(COMMANDS, min_size=1, max_size=4), min_size=2, max_size=6)
