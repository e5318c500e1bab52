# SPDX-License-Identifier: Apache-2.0
"""`python -m wicketgate.lab.nlb`."""

import sys

from wicketgate.lab.nlb.server import main

sys.exit(main())
