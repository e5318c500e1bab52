# SPDX-License-Identifier: Apache-2.0
"""A twin: a throw-away network namespace, rebuilt from a `Snapshot`, in which real packets are sent."""
