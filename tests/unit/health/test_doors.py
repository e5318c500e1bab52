# SPDX-License-Identifier: Apache-2.0
"""The keeper of doors, with doors that are not built: which uplink, when anew, and what happens when one cannot be."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from wicketgate.clock import FakeClock
from wicketgate.errors import StateError
from wicketgate.health.door import DoorUnavailable
from wicketgate.health.doors import RETRY_SECONDS, DoorKeeper


@dataclass(frozen=True)
class Up:
    ifname: str = "eth0"
    ifindex: int = 2
    addresses: tuple = (ip_address("10.0.0.5"), ip_address("fd00::5"))
    default: frozenset = frozenset({4, 6})


@dataclass
class FakeDoor:
    uplink: str
    world: World
    stands: bool = True
    unreadable: bool = False
    repaired: int = 0

    async def open(self) -> None:
        if self.world.refuse:
            raise DoorUnavailable(self.world.refuse)
        await asyncio.sleep(0)
        assert self.uplink not in self.world.standing, "two doors at one uplink"
        self.world.standing[self.uplink] = self

    async def close(self) -> None:
        await asyncio.sleep(0)
        self.world.standing.pop(self.uplink, None)
        if self.world.stuck:
            raise StateError("nft does not answer")

    async def repair(self) -> None:
        await self.close()
        self.stands, self.unreadable = True, False
        self.repaired += 1
        await self.open()

    async def verify(self) -> bool:
        await asyncio.sleep(0)
        if self.unreadable:
            raise StateError("nft does not answer")
        return self.stands


@dataclass
class World:
    standing: dict = field(default_factory=dict)
    refuse: str = ""
    stuck: bool = False
    made: int = 0

    def make(self, uplink, addresses):
        self.made += 1
        return FakeDoor(uplink, self)


@pytest.fixture
def world():
    return World()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def keeper(world, clock):
    return DoorKeeper(world.make, mode="auto", clock=clock)


async def test_one_door_at_the_uplink_with_the_default_route(keeper, world):
    """Both families by one door; the second look changes nothing."""
    other = Up("net1", 5, (ip_address("10.1.0.5"),), frozenset())
    assert await keeper.follow([Up(), other])
    assert list(world.standing) == ["eth0"]
    assert keeper.families() == (4, 6)
    assert keeper.door(4) is keeper.door(6) is world.standing["eth0"]
    assert not await keeper.follow([Up(), other])
    assert world.made == 1


async def test_a_family_with_another_uplink_has_another_door(keeper, world):
    """IPv4 by eth0 and IPv6 by net1: a door at each."""
    four = Up("eth0", 2, (ip_address("10.0.0.5"),), frozenset({4}))
    six = Up("net1", 5, (ip_address("fd00::5"),), frozenset({6}))
    await keeper.follow([four, six])
    assert (keeper.uplink(4), keeper.uplink(6)) == ("eth0", "net1")
    assert set(world.standing) == {"eth0", "net1"}


async def test_the_default_route_that_is_gone_for_now_keeps_its_uplink_watched(keeper, world):
    """IPv4 and IPv6 stay served as families, so that the missing route shows; IPv6 that never had one does not count."""
    await keeper.follow([Up()])
    await keeper.follow([Up(default=frozenset())])
    assert keeper.families() == (4, 6)
    fresh = DoorKeeper(World().make, mode="auto")
    await fresh.follow([Up(default=frozenset())])
    assert fresh.families() == (4,)


async def test_an_uplink_made_anew_or_with_another_address_gets_a_new_door(keeper, world):
    """Another ifindex is another interface; another address needs other rules; a lost uplink has none."""
    await keeper.follow([Up()])
    first, generation = keeper.door(4), keeper.generation
    assert await keeper.follow([Up(ifindex=9)])
    assert keeper.door(4) is not first
    assert keeper.generation > generation
    second = keeper.door(4)
    assert await keeper.follow([Up(ifindex=9, addresses=(ip_address("10.0.0.6"),))])
    assert keeper.door(4) is not second
    assert await keeper.follow([])
    assert keeper.families() == ()
    assert keeper.door(4) is None
    assert world.standing == {}


async def test_what_was_damaged_is_built_anew(keeper, world):
    """Also when it cannot even be looked at; a door that stands is left alone."""
    await keeper.follow([Up()])
    assert not await keeper.verify()
    world.standing["eth0"].stands = False
    assert await keeper.verify()
    world.standing["eth0"].unreadable = True
    assert await keeper.verify()
    assert world.standing["eth0"].repaired == 2
    assert keeper.door(4) is world.standing["eth0"]


async def test_what_cannot_be_built_anew_is_no_door(keeper, world):
    """The reason is kept, and no half of a door is used."""
    await keeper.follow([Up()])
    world.standing["eth0"].stands = False
    world.refuse = "no act_mirred"
    assert await keeper.verify()
    assert keeper.door(4) is None
    assert keeper.reason(4) == "no act_mirred"


async def test_callers_at_the_same_time_never_build_two(keeper, world):
    """Events, probes and the firewall's watcher may all find the same damage."""
    await keeper.follow([Up()])
    world.standing["eth0"].stands = False
    await asyncio.gather(keeper.verify(), keeper.follow([Up(ifindex=3)]), keeper.verify(), keeper.follow([Up()]))
    assert list(world.standing) == ["eth0"]
    await asyncio.gather(keeper.close(), keeper.verify())
    assert world.standing == {}


async def test_who_waits_for_rest_does_not_see_half_a_door(keeper, world):
    """`settled` returns when building is over."""
    building = asyncio.create_task(keeper.follow([Up()]))
    await asyncio.sleep(0)
    assert keeper.door(4) is None
    await keeper.settled()
    assert keeper.door(4) is not None
    await building


async def test_no_door_is_said_with_its_reason_and_tried_again(keeper, world, clock):
    """A machine without mirred: no door, a reason; later it is tried again, and not more often than that."""
    world.refuse = "no act_mirred"
    await keeper.follow([Up()])
    assert keeper.door(4) is None
    assert keeper.reason(4) == "no act_mirred"
    assert not await keeper.retry()
    assert world.made == 1
    clock.advance(RETRY_SECONDS)
    assert not await keeper.retry()
    assert not await keeper.retry()
    assert world.made == 2
    world.refuse = ""
    clock.advance(RETRY_SECONDS)
    assert await keeper.retry()
    assert keeper.door(4) is not None
    assert keeper.reason(4) == ""


async def test_never_and_without_the_right(world):
    """--door never and a missing capability: nothing is tried, and the reason says which."""
    for keeper, word in (
        (DoorKeeper(world.make, mode="never"), "--door never"),
        (DoorKeeper(None, mode="auto", why_not="no CAP_NET_ADMIN"), "CAP_NET_ADMIN"),
    ):
        await keeper.follow([Up()])
        assert keeper.door(4) is None
        assert word in keeper.reason(4)
        assert not await keeper.retry()
    assert world.made == 0
    assert DoorKeeper(world.make, mode="always").demanded


async def test_a_door_is_removed_to_the_end_although_the_agent_is_told_to_stop(keeper, world):
    """Cancelled in the middle of moving a door: the old one is gone, and closing leaves nothing."""
    await keeper.follow([Up()])
    moving = asyncio.create_task(keeper.follow([Up(ifindex=9)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    await keeper.close()
    assert world.standing == {}


async def test_a_door_that_cannot_be_removed_does_not_stop_the_others(keeper, world):
    """Closing goes through to the end."""
    six = Up("net1", 5, (ip_address("fd00::5"),), frozenset({6}))
    await keeper.follow([Up(addresses=(ip_address("10.0.0.5"),), default=frozenset({4})), six])
    world.stuck = True
    await keeper.close()
    assert world.standing == {}
