"""Who may ask: whoever has the token that was printed, and calls this machine by a loopback name. All others get 403.

The token stands in the first address only; the answer moves it to a cookie that scripts and other sites cannot use.
"""

import hmac
import secrets
from urllib.parse import urlsplit

from flask import Flask, Response, redirect, request

HOSTS = {"127.0.0.1", "localhost"}  # any other name in Host is a site that was made to point here (DNS rebinding)
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def new_token() -> str:
    """A secret of 256 bits for one start of the page."""
    return secrets.token_urlsafe(32)


def guard(server: Flask, token: str) -> None:
    """Let `server` answer only those who show the token, in the address once or in the cookie; 403 for all else."""
    cookie = "pants_dist_" + token[:6]  # cookies are shared by all ports of a host: two pages must not take each other's

    @server.before_request
    def allowed() -> Response | None:
        if urlsplit(f"//{request.host}").hostname not in HOSTS:
            return _refused()
        if request.path == "/" and _same(request.args.get("token", ""), token):
            answer = redirect("/", 303)
            answer.set_cookie(cookie, token, httponly=True, samesite="Strict")
            return answer  # type: ignore[return-value]
        return None if _same(request.cookies.get(cookie, ""), token) else _refused()

    @server.after_request
    def sealed(response: Response) -> Response:
        response.headers.update(HEADERS)
        return response


def _same(given: str, token: str) -> bool:
    return hmac.compare_digest(given.encode(), token.encode())


def _refused() -> Response:
    return Response("403: open the address that pants-dist dashboard printed, with its token\n", 403, mimetype="text/plain")
