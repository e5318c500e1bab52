# SPDX-License-Identifier: Apache-2.0
"""wg-quick files and gateway settings as models, validated with file, line and field. No I/O."""
