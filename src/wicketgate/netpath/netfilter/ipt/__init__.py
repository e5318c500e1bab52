# SPDX-License-Identifier: Apache-2.0
"""iptables: the listing of `iptables-save` and what its chains decide."""
