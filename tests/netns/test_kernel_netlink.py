# SPDX-License-Identifier: Apache-2.0
"""The netlink adapter against the kernel: each trap of the libraries is a test."""

from __future__ import annotations

import asyncio
import errno
import subprocess
import sys
import textwrap
import threading
import time
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from netns.netlink_stand import RULES, on, wired
from wicketgate.errors import KernelRefused
from wicketgate.kernel import sysctl
from wicketgate.kernel.netlink import RouteAnswer
from wicketgate.netpath.snapshot import NextHop, Route, Rule

V4, V6 = ip_network("0.0.0.0/0"), ip_network("::/0")


@pytest.fixture
def host(new_host):
    return wired(new_host)


ROUTES = [
    Route(V4, nexthops=(NextHop("e0", ip_address("10.0.0.2")),), protocol=87),
    Route(V4, table=51820, nexthops=(NextHop("e1"),), protocol=87, scope=253),
    Route(ip_network("10.1.0.0/16"), nexthops=(NextHop("e0", ip_address("169.254.1.1"), flags=4),), metric=7),
    Route(ip_network("10.2.0.0/16"), table=70000, nexthops=(NextHop("e0", ip_address("10.0.0.3"), 3), NextHop("e1"))),
    Route(ip_network("10.3.0.0/16"), nexthops=(NextHop("e0"),), prefsrc=ip_address("10.0.0.1"), scope=253, tos=0x10),
    Route(ip_network("10.4.0.0/16"), nexthops=(NextHop("e0", ip_address("fd00::9")),), metrics={"mtu": "lock 1300", "advmss": "1200"}),
    Route(ip_network("10.5.0.0/16"), type="blackhole", protocol=87),
    Route(ip_network("10.6.0.0/16"), type="throw", table=9),
    Route(V6, nexthops=(NextHop("e0", ip_address("fd00::2")),), protocol=87, metric=5),
    Route(ip_network("fd01::/64"), table=51820, nexthops=(NextHop("e1"),), protocol=87),
    Route(ip_network("fd02::/64"), type="unreachable", protocol=87),
    Route(ip_network("fd03::/64"), src=ip_network("fd00::/64"), nexthops=(NextHop("e0", ip_address("fd00::2")),), protocol=87),
]  # fmt: skip


def test_every_kind_of_route_is_written_and_read_back_as_it_was_asked(host):
    """Gateways of both families, onlink, multipath, metrics, rejecting types, subtrees: added, listed, deleted."""

    async def main(netlink):
        async def ours():
            # The kernel's own come a moment later, when an interface's link-local address is settled.
            return [route for route in await netlink.routes() if route.protocol != 2]

        assert await ours() == []
        for route in ROUTES:
            await netlink.add_route(route)
        assert len(await ours()) == len(ROUTES)
        assert [r.dst for r in await netlink.routes(4, 51820)] == [V4]
        with pytest.raises(KernelRefused) as caught:
            await netlink.add_route(ROUTES[0])
        assert caught.value.errno == errno.EEXIST
        for route in ROUTES:
            await netlink.delete_route(route)
        with pytest.raises(KernelRefused) as caught:
            await netlink.delete_route(ROUTES[0])
        assert caught.value.errno == errno.ESRCH
        assert await ours() == []

    on(host, main)


def test_a_route_replaces_another_with_the_same_key(host):
    """`replace` leaves one default route, the new one."""

    async def main(netlink):
        await netlink.add_route(ROUTES[0])
        other = Route(V4, nexthops=(NextHop("e1"),), protocol=87, scope=253)
        await netlink.add_route(other, replace=True)
        assert [r.nexthops for r in await netlink.routes(4, 254) if r.dst == V4] == [(NextHop("e1"),)]

    on(host, main)


def test_nexthop_objects_keep_their_number(host):
    """RTA_NH_ID is read; the ways behind it are the kernel's word."""
    host.run("ip", "nexthop", "add", "id", "7", "dev", "e1")
    host.run("ip", "route", "add", "10.9.0.0/16", "nhid", "7")
    (route,) = [r for r in on(host, lambda n: n.routes(4)) if r.dst == ip_network("10.9.0.0/16")]
    assert (route.nh_id, route.nexthops, route.unknown) == (7, (NextHop("e1"),), ())


def test_the_kernel_says_where_a_packet_would_go(host):
    """The real table (not 254) and the matched prefix; mark, source, user and ports are heard."""

    async def main(netlink):
        for rule in (RULES[0], RULES[1]):
            await netlink.add_rule(rule)
        await netlink.add_route(ROUTES[0])
        await netlink.add_route(ROUTES[1])
        far = ip_address("198.51.100.7")
        assert await netlink.get_route(far) == RouteAnswer("e1", 51820, ip_address("10.0.0.1"), None, "unicast", V4)
        marked = await netlink.get_route(far, mark=51820)
        assert (marked.oif, marked.table, marked.via) == ("e0", 254, ip_address("10.0.0.2"))
        near = await netlink.get_route(ip_address("10.0.0.9"))
        assert (near.oif, near.table, near.matched) == ("e0", 254, ip_network("10.0.0.0/24"))
        own = await netlink.get_route(ip_address("10.0.0.1"))
        assert (own.oif, own.table, own.type) == ("lo", 255, "local")
        await netlink.add_rule(Rule(4, 90, table=254, ipproto=6, sport=(9000, 9000)))
        await netlink.add_rule(Rule(4, 91, action="prohibit", uid_range=(4711, 4711)))
        assert (await netlink.get_route(far, ipproto=6, sport=9000, dport=5)).oif == "e0"
        assert (await netlink.get_route(far, ipproto=6, sport=9001, dport=5)).oif == "e1"
        bound = await netlink.get_route(far, oif="e0")
        assert bound.table == 254
        with pytest.raises(KernelRefused) as caught:
            await netlink.get_route(far, uid=4711)
        assert caught.value.errno == errno.EACCES
        six = await netlink.get_route(ip_address("fd00::5"), src=ip_address("fd00::1"))
        assert (six.oif, six.table, six.matched) == ("e0", 254, ip_network("fd00::/64"))
        with pytest.raises(KernelRefused) as caught:
            await netlink.get_route(ip_address("2001:db8::1"))
        assert caught.value.errno == errno.ENETUNREACH

    on(host, main)


def test_a_packet_that_comes_in_is_judged_with_its_interface(host):
    """iif: forwarded when forwarding is on, EXDEV under strict rp_filter when the way back is another."""

    async def main(netlink):
        await netlink.set_devconf("e1", "forwarding", 1)
        await netlink.set_devconf("e1", "rp_filter", 1)
        await netlink.add_route(ROUTES[0])
        await netlink.add_route(Route(ip_network("10.77.0.0/16"), nexthops=(NextHop("e1"),), scope=253))
        await netlink.add_address("e1", ip_interface("10.88.0.1/24"))
        answer = await netlink.get_route(ip_address("198.51.100.7"), src=ip_address("10.77.0.1"), iif="e1")
        assert (answer.oif, answer.type) == ("e0", "unicast")
        with pytest.raises(KernelRefused) as caught:
            await netlink.get_route(ip_address("198.51.100.7"), src=ip_address("203.0.113.1"), iif="e1")
        assert caught.value.errno in (errno.EXDEV, errno.EINVAL)

    on(host, main)


def test_errors_carry_the_kernels_own_sentence(host):
    """Extended acknowledgements: why, not just a number; and a name that is not there."""

    async def main(netlink):
        gateway = Route(ip_network("10.99.0.0/24"), nexthops=(NextHop("e0", ip_address("99.0.0.2")),))
        with pytest.raises(KernelRefused, match=r"ip -4 route add 10\.99\.0\.0/24 .*: Nexthop has invalid gateway"):
            await netlink.add_route(gateway)
        with pytest.raises(KernelRefused, match="Backward goto not supported"):
            await netlink.add_rule(Rule(4, 100, action="goto", goto=50))
        with pytest.raises(KernelRefused) as caught:
            await netlink.set_link("nosuch", up=True)
        assert caught.value.errno == errno.ENODEV
        with pytest.raises(KernelRefused) as caught:
            await netlink.add_link("e0", "veth", peer="e2")
        assert caught.value.errno == errno.EEXIST
        with pytest.raises(KernelRefused) as caught:
            await netlink.add_link("x0", "nosuchkind")
        assert caught.value.errno == errno.EOPNOTSUPP

    on(host, main)


def test_links_and_addresses(host):
    """Made, changed, described and removed; IPv6 addresses are usable at once."""

    async def main(netlink):
        await netlink.add_link("v0", "veth", peer="v1")
        await netlink.set_link("v0", up=True, mtu=1420, alias="wicketgate")
        link = next(link for link in await netlink.links() if link.name == "v0")
        assert (link.kind, link.up, link.mtu, link.alias, link.loopback) == ("veth", True, 1420, "wicketgate", False)
        for text in ("10.8.0.1/24", "fd08::1/64"):
            interface = ip_interface(text)
            await netlink.add_address("v0", interface)
            (address,) = [a for a in await netlink.addresses() if a.interface == interface]
            assert (address.ifname, address.peer, address.flags & 0x40) == ("v0", None, 0)  # 0x40 IFA_F_TENTATIVE
            with pytest.raises(KernelRefused) as caught:
                await netlink.add_address("v0", interface)
            assert caught.value.errno == errno.EEXIST
            await netlink.delete_address("v0", interface)
            with pytest.raises(KernelRefused) as caught:
                await netlink.delete_address("v0", interface)
            assert caught.value.errno == errno.EADDRNOTAVAIL
        await netlink.set_link("v0", alias="")
        assert next(link for link in await netlink.links() if link.name == "v0").alias == ""
        await netlink.delete_link("v0")
        assert not [link for link in await netlink.links() if link.name in ("v0", "v1")]

    on(host, main)


def test_a_point_to_point_address_keeps_both_ends(host):
    """IFA_LOCAL is ours, IFA_ADDRESS the other end."""
    host.run("ip", "addr", "add", "10.8.0.1", "peer", "10.8.0.2/32", "dev", "e1")
    (address,) = [a for a in on(host, lambda n: n.addresses()) if a.ip == ip_address("10.8.0.1")]
    assert address.peer == ip_address("10.8.0.2")


def test_neighbours(host):
    """An entry with its hardware address; bridge entries are no neighbours."""
    host.run("ip", "neigh", "add", "10.0.0.9", "lladdr", "02:00:00:00:00:09", "dev", "e0", "nud", "permanent")
    found = on(host, lambda n: n.neighbours())
    assert [(n.ifname, n.mac) for n in found if n.ip == ip_address("10.0.0.9")] == [("e0", "02:00:00:00:00:09")]


def test_without_ipv6_there_is_nothing_and_no_error(host, monkeypatch):
    """Switched off in the namespace, or not in the kernel at all: empty answers, IPv4 goes on."""
    host.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")

    async def main(netlink):
        assert [r for r in await netlink.routes(6) if r.oif not in ("", "lo")] == []
        assert [a for a in await netlink.addresses() if a.family == 6] == []
        real = netlink.connection.dump

        async def kernel_without(message_class, kind, fields, attributes=None, **options):
            if fields.get("family") == 10:
                raise KernelRefused(options["what"], errno.EAFNOSUPPORT, "Address family not supported by protocol")
            return await real(message_class, kind, fields, attributes, **options)

        monkeypatch.setattr(netlink.connection, "dump", kernel_without)
        assert {r.family for r in await netlink.rules()} == {4}
        assert {r.family for r in await netlink.routes()} == {4}

    on(host, main)


def test_a_table_that_is_not_there_has_no_routes(host):
    """The kernel answers ENOENT to a filtered dump; that is an empty table."""
    assert on(host, lambda n: n.routes(None, 12345)) == ()


def test_a_dump_that_was_changed_between_its_parts_is_started_again(host):
    """The kernel skips a rule when an earlier one goes between two parts, and does not say so: we notice, and ask anew."""
    rules = "".join(f"rule add pref {1000 + n} from 10.0.{n % 256}.{n // 256} lookup {n + 1}\n" for n in range(2000))
    host.run("ip", "-batch", "-", stdin=rules)
    churn = "".join(f"rule add pref {n} lookup 7\nrule del pref {n}\n" for n in range(1, 50))
    connection = []
    stop = threading.Event()

    def churning():
        # Until three dumps were spoiled: then the fourth attempt, or a later one, comes through.
        while not stop.is_set() and (not connection or connection[0].interrupted_dumps < 3):
            host.run("ip", "-batch", "-", stdin=churn)

    thread = threading.Thread(target=churning)
    thread.start()

    async def main(netlink):
        connection.append(netlink.connection)
        deadline = time.monotonic() + 40
        while netlink.connection.interrupted_dumps < 3 and time.monotonic() < deadline:
            found = await netlink.rules(4)
            assert [r.priority for r in found if 1000 <= r.priority < 3000] == list(range(1000, 3000))
        return netlink.connection.interrupted_dumps

    try:
        assert on(host, main) >= 3
    finally:
        stop.set()
        thread.join()


def test_a_flood_that_never_ends_is_an_error_and_not_a_lie(host, monkeypatch):
    """A dump that is interrupted every time is refused with EAGAIN."""

    async def main(netlink):
        real = netlink.connection._exchange

        async def always(*args):
            answers, _, parts = await real(*args)
            return answers, True, parts

        monkeypatch.setattr(netlink.connection, "_exchange", always)
        with pytest.raises(KernelRefused, match="somebody floods them") as caught:
            await netlink.links()
        assert caught.value.errno == errno.EAGAIN

    on(host, main)


def test_cancelled_requests_leave_nothing_behind(host):
    """A caller that gives up in the middle of a dump costs no sequence number, and the next dump is whole."""
    host.run("ip", "-batch", "-", stdin="".join(f"rule add pref {n} lookup 9\n" for n in range(1, 400)))

    async def main(netlink):
        pool = netlink.ipr.addr_pool
        whole = await netlink.rules(4)
        for _ in range(10):
            task = asyncio.create_task(netlink.rules(4))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await netlink.rules(4) == whole
        for _ in range(3):
            with pytest.raises(KernelRefused):
                await netlink.delete_link("nosuch")
        while netlink.connection._running:
            await asyncio.wait(netlink.connection._running)
        in_use = sum((~cell & pool.cell).bit_count() for cell in pool.addr_map)
        assert in_use == len(pool.ban)  # those that wait for their turn to be used again, none lost
        assert netlink.ipr.msg_queue.root.empty()

    on(host, main)


def test_many_requests_at_once(host):
    """Concurrent dumps and requests on one socket neither mix nor fail (the kernel allows one dump at a time)."""

    async def main(netlink):
        answers = await asyncio.gather(
            *(netlink.rules() for _ in range(10)),
            *(netlink.links() for _ in range(10)),
            *(netlink.get_route(ip_address("10.0.0.1")) for _ in range(10)),
            *(netlink.get_route(ip_address("203.0.113.1")) for _ in range(5)),
            return_exceptions=True,
        )
        assert len(set(map(repr, answers[:10]))) == 1
        assert len(set(map(repr, answers[10:20]))) == 1
        assert {a.type for a in answers[20:30]} == {"local"}
        assert all(isinstance(a, KernelRefused) and a.errno == errno.ENETUNREACH for a in answers[30:])

    on(host, main)


READ_ONLY = textwrap.dedent(
    """
    import asyncio
    from wicketgate.errors import KernelRefused
    from wicketgate.kernel import sysctl
    from wicketgate.kernel.netlink import Netlink

    async def main():
        assert not sysctl.writable("net.ipv4.conf.e0.forwarding"), "/proc/sys is writable after all"
        try:
            sysctl.write("net.ipv4.conf.e0.forwarding", "1")
        except KernelRefused as refused:
            assert refused.errno == 30, refused  # EROFS
        else:
            raise AssertionError("written through a read-only /proc/sys")
        async with Netlink() as netlink:
            for key in ("forwarding", "rp_filter", "src_valid_mark", "route_localnet", "accept_local", "arp_filter"):
                assert (await netlink.get_devconf("e0"))[key] == 0, key
                await netlink.set_devconf("e0", key, 1)
                assert sysctl.read(f"net.ipv4.conf.e0.{key}") == "1", key
        print("done")

    asyncio.run(main())
    """
)


def test_devconf_is_set_where_proc_sys_is_read_only(host):
    """With CAP_NET_ADMIN as the only capability and /proc/sys mounted read-only, as in an unprivileged pod."""
    script = (
        "mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys /proc/sys && "
        'exec setpriv --bounding-set=-all,+net_admin --inh-caps=-all,+net_admin "$@"'
    )
    done = host.run("unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-c", READ_ONLY)
    assert done.stdout == "done\n"
    assert host.call(lambda: sysctl.read("net.ipv4.conf.e0.rp_filter")) == "1"
    assert host.call(lambda: sysctl.read("net.ipv4.conf.e1.rp_filter")) == "0"


def test_without_the_right_the_refusal_says_so(host):
    """A user without capabilities reads everything and changes nothing: EPERM."""
    script = textwrap.dedent(
        """
        import asyncio
        from wicketgate.errors import KernelRefused
        from wicketgate.kernel.netlink import Netlink
        from wicketgate.netpath.snapshot import Rule
        async def main():
            async with Netlink() as netlink:
                assert len(await netlink.rules()) >= 3 and len(await netlink.links()) == 3
                try:
                    await netlink.add_rule(Rule(4, 5, table=254))
                except KernelRefused as refused:
                    print(refused)
        asyncio.run(main())
        """
    )
    done = host.run("setpriv", "--bounding-set=-all", "--inh-caps=-all", sys.executable, "-c", script)
    assert done.stdout == "ip -4 rule add from all lookup main pref 5: Operation not permitted (errno 1)\n"


def test_subprocesses_of_other_namespaces_are_untouched(host):
    """The adapter works where its thread stands: what it adds in a host does not show outside."""
    on(host, lambda netlink: netlink.add_rule(Rule(4, 4242, table=254, src=ip_network("192.0.2.77"))))
    outside = subprocess.run(["ip", "rule"], capture_output=True, text=True, check=True).stdout
    assert "192.0.2.77" not in outside
