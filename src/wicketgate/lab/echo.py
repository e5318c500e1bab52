# SPDX-License-Identifier: Apache-2.0
"""The TCP echo of the seed's Deployment (istio/tcp-echo-server): answers each line with `PREFIX line`.

Usage: python -m wicketgate.lab.echo PORT[,PORT...] PREFIX
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def serve(ports: list[int], prefix: bytes) -> None:
    """Answer until cancelled; IPv4 and IPv6, every address. Says so on stdout once it listens."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError):  # gone, or a line longer than the reader's limit
            while line := await reader.readline():
                writer.write(prefix + b" " + line)
                await writer.drain()
        writer.close()

    async with contextlib.AsyncExitStack() as stack:
        for port in ports:
            await stack.enter_async_context(await asyncio.start_server(talk, None, port))
        print(f"listening on {', '.join(str(port) for port in ports)}", flush=True)  # noqa: T201
        await asyncio.get_running_loop().create_future()


def main(arguments: list[str]) -> int:
    """Run until killed; exit code 2 when the arguments make no sense."""
    try:
        ports = [int(port) for port in arguments[0].split(",")]
        prefix = arguments[1]
    except (IndexError, ValueError):
        print("usage: echo PORT[,PORT...] PREFIX", file=sys.stderr)  # noqa: T201
        return 2
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(ports, prefix.encode()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
