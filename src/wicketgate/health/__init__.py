# SPDX-License-Identifier: Apache-2.0
"""The door probe, checks and verdicts, and the ports on which they are told."""
