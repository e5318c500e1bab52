# SPDX-License-Identifier: Apache-2.0
"""The door probe: packets of our own that leave by the uplink and come in again by the uplink, as a stranger's.

A process that sends to its own address goes over `lo` and never meets what breaks real clients: rules for `-i eth0`,
rp_filter, the default route, policy rules that catch replies. Here nftables gives the agent's packets a stranger's
source, tc turns them round as they leave, and the kernel routes, filters and tracks them anew. Nothing leaves the
interface, only reserved addresses match, and CAP_NET_ADMIN is enough. `door_rules` has the rules themselves: what a probe
needs stands all the time, what tells where a lost one went is put up for the moment that somebody asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_network
from types import TracebackType
from typing import Literal, Self

from wicketgate.errors import KernelRefused, StateError
from wicketgate.health import door_cleanup as cleanup
from wicketgate.health import door_rules as rules
from wicketgate.health.door_account import Loss, lost_in, lost_out
from wicketgate.health.door_sockets import bound_socket, tcp_probe
from wicketgate.health.door_support import Support, support
from wicketgate.health.door_trial import Trial, judged, lost, send_both_ways, strayed
from wicketgate.health.door_types import DoorUnavailable, NoRouteToStrangers, Outcome, OutTarget, TcpAnswer
from wicketgate.kernel import nft
from wicketgate.kernel.netlink import Netlink
from wicketgate.kernel.ownership import ROUTE_PROTOCOL
from wicketgate.kernel.process import run
from wicketgate.kernel.sysctl import part, read
from wicketgate.kernel.tc import Redirect, TrafficControl
from wicketgate.logs import get_logger
from wicketgate.netpath.snapshot import Family, IPAddress, Rule

__all__ = [
    "Door",
    "DoorUnavailable",
    "Loss",
    "NoRouteToStrangers",
    "OutTarget",
    "Outcome",
    "TcpAnswer",
    "TcpMode",
]

_log = get_logger("door")

TcpMode = Literal["auto", "always", "never"]
# The out probe's ports: new ones each time, and none again while conntrack remembers it (30 s by default).
_OUT_PORTS = range(49152, 65536)
# Before anything a tunnel or a CNI adds (theirs start at 9).
_RULE_PRIORITY = 7


class Door:
    """The door of one tunnel at one uplink. An async context manager; open several one after the other.

    Args:
        netlink: open, in this network namespace.
        uplink: the interface.
        addresses: the pod's addresses on it; the first of each family is the one strangers speak to.
        tag: whose door: the tunnel's name. Leftovers are found again by it.
        tcp: `auto` lets TCP in only on kernels known to queue the redirect; `always` overrides, with a warning.
        kernel_release: as `uname -r`; None = this machine's.

    Attributes:
        families: those the door is open for.
        tcp_supported: whether `tcp_check` may be called.
        reason: why, or why not, in one line.
    """

    def __init__(
        self,
        netlink: Netlink,
        *,
        uplink: str,
        addresses: Sequence[IPAddress],
        tag: str,
        tcp: TcpMode = "auto",
        kernel_release: str | None = None,
    ) -> None:
        self._netlink = netlink
        self.uplink = uplink
        self.tag = tag
        self._pods: dict[Family, tuple[IPAddress, ...]] = {}
        families: tuple[Family, ...] = (4, 6)
        for family in families:
            pods = tuple(each for each in addresses if each.version == family and not each.is_link_local)
            if pods:
                self._pods[family] = pods
        self.families = tuple(self._pods)
        self._support: Support = support(kernel_release)
        self.tcp_supported = tcp != "never" and (tcp == "always" or self._support.tcp)
        self.reason = "TCP through the door is switched off" if tcp == "never" else self._support.reason
        self._forced = tcp == "always" and not self._support.tcp
        self._tc = TrafficControl()
        self._slot = -1
        self._index = 0
        self._made_clsact = False
        self._tracked: set[Family] = set()
        self._rule: Rule | None = None
        self._listing = ""
        self._counted: dict[Family, Mapping[str, int]] = {}
        self._turn = asyncio.Lock()  # nobody looks at the table, or removes it, while it is counting
        self._opened = False
        self._next = random.randrange(len(_OUT_PORTS))  # noqa: S311 - only to differ from the last run's ports

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self.close()

    @staticmethod
    async def clean_leftovers(netlink: Netlink, tag: str, *, uplink: str | None = None) -> int:
        """Remove what killed predecessors of this tag left on an uplink, or on all.

        Returns:
            How many filters, tables and rules there were.

        Raises:
            StateError: no netlink, no nft, or no right.
        """
        return await cleanup.leftovers(netlink, tag, uplink)

    def pod(self, family: Family) -> IPAddress:
        """The address strangers speak to."""
        return self._pods[family][0]

    def stranger(self, family: Family) -> IPAddress:
        """Whom the pod sees: shown as the probe peer's endpoint by `wg show`, to be kept out of what users read."""
        return self._trio(family).stranger

    async def open(self) -> None:
        """Build the door and try it; a killed predecessor's is removed first.

        Raises:
            DoorUnavailable: with everything undone.
        """
        if self._opened:
            return
        if not self._support.door:
            raise DoorUnavailable(self._support.reason)
        if not self.families:
            raise DoorUnavailable(f"{self.uplink} has no address that a stranger could speak to")
        if not rules.spellable(self.uplink):
            raise DoorUnavailable(f"nft cannot spell the interface name {self.uplink!r}")
        if self._forced:
            _log.warning("TCP goes through the door although the kernel may deadlock on it", reason=self.reason)
        self._tc = TrafficControl()
        try:
            self._tc.open()
            await self._build()
            self._opened = True
            for family in self.families:
                await self._try(family)
            self._listing = await self._list()
        except BaseException as error:
            self._opened = False
            await self._undo()
            if isinstance(error, StateError):
                raise DoorUnavailable(f"no door at {self.uplink}: {error}") from error
            raise

    async def close(self) -> None:
        """Remove exactly what `open` put there."""
        async with self._turn:
            if self._opened:
                self._opened = False
                await self._undo()

    async def verify(self) -> bool:
        """Whether all of it is still in place and lets the agent's own half through; to be asked when a probe failed.

        Raises:
            StateError: it cannot be read.
        """
        async with self._turn:
            return await self._verify()

    async def _verify(self) -> bool:
        self._must_be_open()
        if _index(self.uplink) != self._index:
            return False
        filters = await self._tc.filters(self._index)
        wanted = sorted((each.priority, each.cookie) for each in self._redirects())
        found = sorted((each.priority, each.cookie) for each in filters if rules.is_cookie(each.cookie, self.tag))
        if wanted != found or await self._list() != self._listing:
            return False
        # With our rule in place the question whether it is needed cannot be asked.
        if self._rule is None and await self._wanted_rule() is not None:
            return False
        if self._rule is not None and self._rule not in await self._netlink.rules(4):
            return False
        for family in self.families:
            before, after = self._counted.get(family, {}), await self._seen(family)
            self._counted[family] = after
            if lost(before, after, "agent_sent", "agent_left"):
                return False
            if strayed(before, after) and await self._thief(family):
                return False
            # Answers came back as far as the door: does a firewall keep them from the agent since then?
            if after["reply_back"] > before.get("reply_back", 0) and not await self._passes(family):
                trial = await self._trial(family)
                self._counted[family] = await self._seen(family)
                if trial.dropped or trial.kept_in:
                    return False
        return True

    async def repair(self) -> None:
        """Build it again, whatever is left of it.

        Raises:
            DoorUnavailable: it can no longer be built; the door is closed then.
        """
        await self.close()
        await self.open()

    def udp_socket(self, family: Family, port: int) -> socket.socket:
        """A connected, non-blocking UDP socket whose packets arrive at pod:port as a stranger's; the caller closes it.

        Raises:
            NoRouteToStrangers: the uplink has no route outwards.
            StateError: the pod's address is gone, or the interface.
        """
        return bound_socket(self.uplink, self.pod(family), socket.SOCK_DGRAM, (self._trio(family).agent_peer, port))

    async def tcp_check(self, family: Family, port: int, timeout: float, *, http_path: str | None = None) -> TcpAnswer:
        """Connect to pod:port as the balancer does; with a path, GET it and read the status line.

        Raises:
            DoorUnavailable: TCP stays out of the door on this kernel.
            NoRouteToStrangers: the uplink has no route outwards.
            StateError: the pod's address is gone, or the interface.
        """
        if not self.tcp_supported:
            raise DoorUnavailable(self.reason)
        peer = (self._trio(family).agent_peer, port)
        return await tcp_probe(self.uplink, self.pod(family), peer, timeout, http_path)

    def out_target(self, family: Family) -> OutTarget:
        """The next target of the out probe; a new port each time, or conntrack would know the flow already."""
        target = self._trio(family).target
        self._next = (self._next + 1) % len(_OUT_PORTS)
        return OutTarget(target, _OUT_PORTS[self._next], _OUT_PORTS[self._next])

    async def counters(self, family: Family) -> Mapping[str, int]:
        """Packets counted since the table was made, by `door_rules.STAGES`; most stages count only during an account.

        Raises:
            StateError: they cannot be read.
        """
        self._must_be_open()
        listing = await self._nft("-j", "list", "counters", "table", _word(family), self._table)
        entries = [each["counter"] for each in nft.parse_listing(listing) if "counter" in each]
        return {str(each["name"]): int(each["packets"]) for each in entries}

    async def account(self, family: Family, again: Callable[[], Awaitable[object]]) -> Loss | None:
        """What takes the in probe's packets; None where counters do not tell.

        To be asked after a probe that failed: chains that count are put up, the probe is made again, and they are
        removed. It runs nft four times. `close` and `verify` wait for it.

        Args:
            family: 4 or 6.
            again: makes the probe that failed once more; how that ends does not matter.

        Raises:
            StateError: the chains cannot be put up, or the counters not be read.
        """
        before, after = await self._accounted(family, again)
        return lost_in(before, after, strict=family == 4 and self._strict())

    async def account_out(self, family: Family, again: Callable[[], Awaitable[object]]) -> Loss | None:
        """The same for the out probe. Raises StateError."""
        return lost_out(*await self._accounted(family, again))

    async def _accounted(
        self, family: Family, again: Callable[[], Awaitable[object]]
    ) -> tuple[Mapping[str, int], Mapping[str, int]]:
        async with self._turn:
            self._must_be_open()
            async with self._counting(family):
                before = await self.counters(family)
                await again()
                return before, await self.counters(family)

    @contextlib.asynccontextmanager
    async def _counting(self, family: Family) -> AsyncIterator[None]:
        where = (family, self.tag, self.uplink)
        await nft.nft_apply(rules.count_script(*where, self._slot, self._pods[family]))
        try:
            yield
        finally:
            try:
                await nft.nft_apply(rules.uncount_script(*where))
            except StateError as error:
                # Somebody has flushed or removed the table meanwhile, which `verify` sees.
                _log.debug("the door's counting chains are gone already", uplink=self.uplink, error=str(error))

    async def _seen(self, family: Family) -> Mapping[str, int]:
        """What the table counts while it stands, and from tc's own count what was turned round to the pod."""
        counted = await self.counters(family)  # first: what comes between the two is no loss then
        pref = rules.priority(family, self._slot)
        filters = await self._tc.filters(self._index)
        ours = [each for each in filters if each.priority == pref and rules.is_cookie(each.cookie, self.tag)]
        # In the order of `_redirects`.
        inwards = min(ours, key=lambda each: each.handle, default=None)
        return {**counted, "arrived": inwards.packets if inwards is not None else 0}

    @property
    def _table(self) -> str:
        return rules.table_name(self.tag, self.uplink)

    def _trio(self, family: Family) -> rules.Trio:
        self._must_be_open()
        return rules.trio(family, self._slot)

    def _must_be_open(self) -> None:
        if not self._opened:
            raise DoorUnavailable(f"the door at {self.uplink} is not open")

    async def _build(self) -> None:
        self._index = _index(self.uplink)
        if self._index == 0:
            raise StateError(f"no interface {self.uplink}")
        # Whoever of us leaves last takes the qdisc away: the word that one of us made it is handed on.
        ours = [each.cookie for each in await self._tc.filters(self._index) if rules.is_cookie(each.cookie)]
        await cleanup.leftovers(self._netlink, self.tag, self.uplink)
        present = [each for each in await self._tc.qdiscs(self._index) if each.at_the_door]
        if present and present[0].kind != "clsact":
            raise StateError(f"{self.uplink} has somebody's {present[0].kind} qdisc where clsact belongs")
        self._slot = await self._free_slot()
        self._tracked.clear()
        self._counted.clear()
        await nft.nft_apply("".join(self._script(family) for family in self.families))
        self._made_clsact = not present or any(rules.cookie_made_clsact(each) for each in ours)
        await self._tc.add(self._index, self.uplink, self._redirects(), clsact=not present)
        self._rule = await self._wanted_rule()
        if self._rule is not None:
            await self._netlink.add_rule(self._rule)

    async def _try(self, family: Family) -> None:
        """See whether the agent's half gets through; follow it in conntrack where only that lets it through.

        Raises:
            StateError: it does not, so a red would prove nothing.
        """
        if await self._passes(family):
            return
        trial = await self._trial(family)
        if trial.dropped:
            self._tracked.add(family)
            await nft.nft_apply(self._script(family))
            trial = await self._trial(family)
        if trial.kept_in:
            raise StateError("a firewall rule here keeps in what the agent itself sends")
        if trial.dropped:
            raise StateError("a firewall rule here drops the answers to the agent itself, even established ones")
        if trial.strayed:
            thief = await self._thief(family)
            if thief:
                raise StateError(f"another tc filter takes the packets first: {thief}")
        self._counted[family] = await self._seen(family)

    async def _passes(self, family: Family) -> bool:
        return await send_both_ways(self.uplink, self.pod(family), self._trio(family))

    async def _trial(self, family: Family) -> Trial:
        async with self._counting(family):
            before = await self.counters(family)
            passed = await self._passes(family)
            return judged(before, await self.counters(family), passed=passed)

    async def _thief(self, family: Family) -> str:
        """The first filter of somebody else that is asked before ours; empty where there is none."""
        ours = rules.priority(family, self._slot)
        for each in await self._tc.filters(self._index):
            if each.priority < ours and not rules.is_cookie(each.cookie) and not each.empty:
                return each.spell(self.uplink)
        return ""

    async def _wanted_rule(self) -> Rule | None:
        """What lets M's answer pass a strict rp_filter where only a stranger's own packets would.

        The reverse-path lookup of a stranger's packet knows its ports and its mark (`ip rule ... sport 51820`); that
        of M's answer has the agent's ports. IPv6 has no such filter.
        """
        if 4 not in self._pods or not self._strict():
            return None
        pod, peer = self.pod(4), rules.trio(4, self._slot).agent_peer
        try:
            bound = await self._netlink.get_route(peer, src=pod, oif=self.uplink)
        except KernelRefused:
            return None  # strangers cannot be answered either
        if not bound.table:
            return None  # no route; for a bound socket the kernel then takes everybody for a neighbour
        with contextlib.suppress(KernelRefused):
            free = await self._netlink.get_route(peer, src=pod)
            if free.oif == self.uplink:
                return None
        return Rule(
            4, _RULE_PRIORITY, table=bound.table, src=ip_network(pod), dst=ip_network(peer), protocol=ROUTE_PROTOCOL
        )

    def _strict(self) -> bool:
        # The effective value is the maximum of `all` and the interface (Documentation/networking/ip-sysctl.rst).
        values = [read(f"net.ipv4.conf.{each}.rp_filter") for each in ("all", part(self.uplink))]
        return max((int(each) for each in values if each and each.isdigit()), default=0) == 1

    async def _undo(self) -> None:
        """Remove whatever there is of ours; what is gone already is no error, what cannot be removed is logged."""
        for remove in (self._undo_rule, self._undo_filters, self._undo_tables):
            try:
                await remove()
            except StateError as error:
                _log.warning("something of the door may be left", uplink=self.uplink, error=str(error))
        self._tc.close()

    async def _undo_rule(self) -> None:
        if self._rule is not None:
            with cleanup.gone():
                await self._netlink.delete_rule(self._rule)
            self._rule = None

    async def _undo_filters(self) -> None:
        if self._index and _index(self.uplink) == self._index:
            await cleanup.remove_filters(self._tc, self._index, self.uplink, self.tag, made_clsact=self._made_clsact)
        self._made_clsact = False

    async def _undo_tables(self) -> None:
        await cleanup.remove_tables(self.tag, self.uplink)

    async def _free_slot(self) -> int:
        used = set()
        for index in {each.ifindex for each in await self._tc.qdiscs() if each.at_the_door}:
            for each in await self._tc.filters(index):
                if rules.is_cookie(each.cookie):
                    used.add(rules.cookie_slot(each.cookie))
                elif index == self._index:
                    used.update(
                        slot for slot in range(rules.SLOTS) if each.priority // 2 == rules.priority(4, slot) // 2
                    )
        for slot in range(rules.SLOTS):
            if slot not in used:
                return slot
        raise StateError(f"{len(used)} doors in one network namespace: no address is left")

    def _script(self, family: Family) -> str:
        tracked = family in self._tracked
        return rules.table_script(family, self.tag, self.uplink, self._slot, self._pods[family], tracked=tracked)

    def _redirects(self) -> list[Redirect]:
        mark = rules.cookie(self.tag, self._slot, made_clsact=self._made_clsact)
        found = []
        for family, pods in self._pods.items():
            three, pref = rules.trio(family, self._slot), rules.priority(family, self._slot)
            found.append(Redirect(pods[0], three.stranger, pref, mark))
            found.append(Redirect(three.stranger, None, pref, mark))
            found.extend(Redirect(pod, three.target, pref, mark) for pod in pods)
        return found

    async def _list(self) -> str:
        """Our tables without their counts; empty where they are gone."""
        parts = []
        for family in self.families:
            done = await run(["nft", "-s", "list", "table", _word(family), self._table])
            parts.append(done.stdout if done.code == 0 else "")
        return "".join(parts)

    async def _nft(self, *arguments: str) -> str:
        done = await run(["nft", *arguments])
        if done.code != 0:
            raise StateError(f"nft {' '.join(arguments)}: {done.said}")
        return done.stdout


def _word(family: Family) -> str:
    return "ip" if family == 4 else "ip6"


def _index(ifname: str) -> int:
    try:
        return socket.if_nametoindex(ifname)
    except OSError:
        return 0
