# SPDX-License-Identifier: Apache-2.0
"""`python -m wicketgate` is `wicket`."""

from wicketgate.cli.app import main

if __name__ == "__main__":
    main()
