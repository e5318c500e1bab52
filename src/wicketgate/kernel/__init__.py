# SPDX-License-Identifier: Apache-2.0
"""The only rooms that touch the network stack: read, write, listen, WireGuard devices."""
