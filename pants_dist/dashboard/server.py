"""The page behind a WSGI server on loopback, and the address that opens it."""

import logging
import os
import socket
from pathlib import Path

from dash import Dash
from flask import Response, request, send_file
from waitress.server import create_server

from pants_dist.dashboard import folders, page
from pants_dist.dashboard.guard import guard, new_token
from pants_dist.dashboard.slices import plane_png, slice_png
from pants_dist.errors import UserError

LOOPBACK = "127.0.0.1"


def make_app(runs: Path, token: str, store: Path | None = None) -> Dash:
    """The page over `runs`, and over `store` while it is made, for those who have the token.

    Raises UserError where there is no run, unless a store is named.
    """
    app = Dash(__name__, title="pants-dist", update_title="", serve_locally=True)
    names = page.names_now if store else folders.run_names
    app.layout = lambda: page.layout(names(runs))
    names(runs)
    guard(app.server, token)
    page.wire(app, runs, store)

    @app.server.route("/picture/<path:name>")
    def picture(name: str) -> Response:
        try:
            path = folders.picture_file(runs, name)
            if (plane := path.with_suffix(".npz")).is_file():
                return _png(plane_png(plane))
            return send_file(path)
        except UserError as error:
            return Response(f"404: {error}\n", 404, mimetype="text/plain")

    @app.server.route("/slice/<path:name>")
    def one_slice(name: str) -> Response:
        asked = request.args
        try:
            index = int(asked.get("index", ""))
            png = slice_png(runs, name, asked.get("case", ""), asked.get("plane", ""), index, asked.get("window", ""))
        except (UserError, ValueError) as error:
            return Response(f"404: {error}\n", 404, mimetype="text/plain")
        return _png(png)

    return app


def _png(png: bytes) -> Response:
    return Response(png, mimetype="image/png", headers={"Cache-Control": "private, max-age=600"})


def listen(runs: Path, port: int, token: str, store: Path | None = None):  # type: ignore[no-untyped-def]  # waitress has no types
    """A server that listens, on a free port where `port` is 0; `.run()` serves until interrupted.

    Raises UserError where the port is taken or there is no run.
    """
    app = make_app(runs.absolute(), token, store)
    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a page asks for a dozen figures at once
    try:
        return create_server(app.server, host=LOOPBACK, port=port, threads=8, ident=None)
    except (OSError, OverflowError) as error:
        raise UserError(f"--port {port}: cannot listen there ({error}); leave it out to take a free one") from error


def serve(runs: Path, port: int, store: Path | None = None) -> None:
    """Print the address and the tunnel that leads to it from elsewhere, and serve until interrupted."""
    token = new_token()
    server = listen(runs, port, token, store)
    chosen, host = server.effective_port, socket.gethostname()
    print(f"Open http://{LOOPBACK}:{chosen}/?token={token}")
    print(f"From another machine, first: ssh -N -L {chosen}:{LOOPBACK}:{chosen} {host}")
    login = os.environ.get("SLURM_SUBMIT_HOST", "LOGIN_NODE")
    print(f"On a compute node: ssh -N -J {login} -L {chosen}:{LOOPBACK}:{chosen} {host}", flush=True)
    server.run()
