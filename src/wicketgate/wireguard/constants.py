# SPDX-License-Identifier: Apache-2.0
"""The numbers and strings of the protocol, named as in the WireGuard paper (sections 5.4 and 6.1)."""

from __future__ import annotations

from enum import IntEnum

# Section 5.4: the labels.
CONSTRUCTION = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
LABEL_MAC1 = b"mac1----"
LABEL_COOKIE = b"cookie--"


class MessageType(IntEnum):
    """The first byte of every message; the three that follow are zero."""

    INITIATION = 1
    RESPONSE = 2
    COOKIE_REPLY = 3
    TRANSPORT = 4


# Section 6.1.
REKEY_TIMEOUT = 5.0  # seconds between two initiations that got no answer
REJECT_AFTER_TIME = 180.0  # seconds a keypair lives
REJECT_AFTER_MESSAGES = 2**64 - 2**13 - 1  # messages a keypair seals
COOKIE_SECRET_LIFE = 120.0  # seconds; section 5.4.7: R_m changes every two minutes
# A cookie is used a little shorter than the server's secret may live (Linux drivers/net/wireguard/messages.h,
# COOKIE_SECRET_MAX_AGE - COOKIE_SECRET_LATENCY).
COOKIE_LIFE = 115.0

# Servers drop initiations of one peer that come faster than this (Linux messages.h, INITIATIONS_PER_SECOND = 50).
INITIATION_INTERVAL = 1 / 50  # seconds
# The kernel measures that with its coarse clock (noise.c, ktime_get_coarse_boottime_ns): one tick of HZ=100 more.
INITIATION_MARGIN = 1 / 100  # seconds

PADDING = 16  # bytes; section 5.4.6
