# SPDX-License-Identifier: Apache-2.0
"""Wicketgate: a WireGuard gateway for Kubernetes that a load balancer can trust."""

__version__ = "0.1.0"
