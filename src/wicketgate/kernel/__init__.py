# SPDX-License-Identifier: Apache-2.0
"""The only rooms that touch the network stack: read, write, listen, WireGuard devices."""

from wicketgate.kernel.lean import lean

lean("pyroute2")  # before any room here imports a part of it
