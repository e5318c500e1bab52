# SPDX-License-Identifier: Apache-2.0
"""A stand-in for an AWS Network Load Balancer: the kernel moves the packets, a small asyncio loop checks and decides."""
