"""`python -m qwenproxy.standin`: serves the stand-in until told to stop; its first line says where."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from .memory import Options
from .site import Addresses, Standin


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.http2 and not (arguments.tls_cert and arguments.tls_key):
        parser.error("--http2 needs --tls-cert and --tls-key")
    logging.basicConfig(level=logging.CRITICAL)
    options = Options(
        era=arguments.era,
        access_token_s=arguments.access_token_s,
        settle_s=arguments.settle_s,
        demo=arguments.demo,
        people=tuple(arguments.people),
        person_in=arguments.person_in,
        person_solves_s=arguments.person_solves_s,
        person_activates_s=arguments.person_activates_s,
        pending=arguments.pending,
        identity=arguments.identity,
        rotate_refresh=arguments.rotate_refresh,
        renew=arguments.renew,
    )
    try:
        asyncio.run(_serve(Standin(options), arguments))
    except OSError as failure:
        sys.stderr.write(f"the stand-in cannot listen: {failure}\n")
        return 2
    except ImportError:
        sys.stderr.write("--http2 needs granian: install the test extra\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qwenproxy.standin", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--auth-port", default="0", help='"same" makes site and auth one origin')
    parser.add_argument("--era", choices=("B", "C"), default="C")
    parser.add_argument("--access-token-s", type=float, default=900.0)
    parser.add_argument("--settle-s", type=float, default=2.0)
    parser.add_argument("--renew", choices=("load", "timer"), default="load")
    parser.add_argument("--demo", action="store_true", help="the sign-in page fills and sends its own form")
    parser.add_argument("--people", nargs="+", default=list(Options().people), help="who that is, in turn")
    parser.add_argument("--person-in", choices=("all", "windows"), default="all")
    parser.add_argument("--person-solves-s", type=float, default=0.0, help="the verification, after so long")
    parser.add_argument("--person-activates-s", type=float, default=0.0, help="the link in the mail")
    parser.add_argument("--pending", choices=("overlay", "refused"), default="overlay")
    parser.add_argument("--identity", choices=("", "page", "popup"), default="", help="tried first; refuses")
    parser.add_argument("--rotate-refresh", action="store_true", help="a renewal ends the old refresh token")
    parser.add_argument("--http2", action="store_true", help="HTTP/2 over TLS, on one origin")
    parser.add_argument("--tls-cert", type=Path)
    parser.add_argument("--tls-key", type=Path)
    return parser


async def _serve(standin: Standin, arguments: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    if arguments.http2:
        from .http2 import serve_http2

        serving = serve_http2(standin, arguments.host, arguments.port, arguments.tls_cert, arguments.tls_key)
    else:
        same = arguments.auth_port == "same"
        auth_port = None if same else int(arguments.auth_port)
        serving = standin.serve(arguments.port, auth_port, arguments.host)
    async with serving as addresses:
        _tell(addresses)
        await stop.wait()


def _tell(addresses: Addresses) -> None:
    sys.stdout.write(json.dumps({"site": addresses.site, "auth": addresses.auth}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
