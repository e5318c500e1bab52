# SPDX-License-Identifier: Apache-2.0
"""Netfilter, as the kernel runs it: nftables, iptables of both kinds, connection tracking and NAT. Pure, no I/O."""
