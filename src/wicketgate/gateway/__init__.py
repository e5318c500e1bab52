# SPDX-License-Identifier: Apache-2.0
"""The agent: desired state to kernel, drift repair, drain."""
