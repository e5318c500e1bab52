# SPDX-License-Identifier: Apache-2.0
"""nftables: the listing of `nft -j list ruleset` and what its chains decide."""
