# SPDX-License-Identifier: Apache-2.0
"""Trace -> cause -> fixes -> proof: which rule breaks a flow, and what mends it."""
