"""The command `dashboard`."""

from __future__ import annotations

import ipaddress
import logging
import secrets
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.cli import Parser
from zolab.errors import UserError

DEFAULT_PORT = 8050


def dashboard(argv: Sequence[str], ready: Callable[[str, object], None] | None = None) -> int:
    """Run `dashboard RUNS [--host H] [--port P] [--every S] [--baseline NAME] [--export FILE]`.

    Args:
        argv: the words behind the verb.
        ready: called with the address and the server before it serves; for tests.

    Raises:
        UserError: wrong words, no folder, a port in use, or the extra is not installed.
    """
    parser = Parser(
        prog="zolab dashboard",
        description="A live page over a folder of runs: grid, curves, runs, comparison.",
    )
    parser.add_argument("runs", metavar="RUNS", type=Path, help="folder of run folders")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, this machine only")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one")
    parser.add_argument(
        "--every", metavar="SECONDS", type=float, default=2.0, help="between two looks (default 2)"
    )
    parser.add_argument("--baseline", metavar="NAME", help="method that speedups are over")
    parser.add_argument("--export", metavar="FILE", type=Path, help="write a static page instead")
    args = parser.parse_args(argv)
    if not args.runs.is_dir():
        what = "a file, expected a folder" if args.runs.exists() else "no such folder"
        raise UserError(f"RUNS = {str(args.runs)!r}: {what}")
    if not 0 <= args.port < 65536:
        raise UserError(f"--port={args.port}: must be 0 to 65535")
    if not 0.1 <= args.every <= 3600:
        raise UserError(f"--every={args.every:g}: must be 0.1 to 3600 seconds")
    if args.export is not None:
        from analysis.dashboard.export import export

        print(f"page: {export(args.runs, args.export, args.baseline)}")
        return 0
    try:
        import dash  # noqa: F401
    except ImportError as error:
        raise UserError("zolab dashboard needs an extra: pip install 'zolab[dashboard]'") from error
    from werkzeug.serving import make_server

    from analysis.dashboard.app import make_app
    from analysis.dashboard.live import Live

    live = Live(args.runs, args.every)
    # The page is served at once and fills as the runs are read.
    threading.Thread(target=live.snapshot, daemon=True).start()
    token = None if _is_local(args.host) else secrets.token_urlsafe(24)
    app = make_app(live, baseline=args.baseline, token=token)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    try:
        server = make_server(args.host, args.port, app.server, threaded=True)
    except (OSError, SystemExit) as error:
        raise UserError(f"--port={args.port}: cannot be listened on at {args.host}") from error
    address = f"http://{args.host}:{server.server_port}/" + (f"?token={token}" if token else "")
    print(f"dashboard: {address} (Ctrl-C ends it)", flush=True)
    if ready is not None:
        ready(address, server)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()
    return 0


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
