# SPDX-License-Identifier: Apache-2.0
"""What people paste into forums, read into a snapshot: the outputs of ip, nft, iptables, wg, ss, sysctl and wg-quick."""
