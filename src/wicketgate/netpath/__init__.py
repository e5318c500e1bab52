# SPDX-License-Identifier: Apache-2.0
"""How Linux moves a packet: snapshots and flows. Pure, no I/O."""
