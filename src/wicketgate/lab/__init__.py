# SPDX-License-Identifier: Apache-2.0
"""One machine, whole story: hosts, load balancer and scenarios in network namespaces."""
