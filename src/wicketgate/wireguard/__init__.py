# SPDX-License-Identifier: Apache-2.0
"""The WireGuard protocol: keys, Noise IKpsk2 handshake, cookies, transport, and a synthetic client."""
