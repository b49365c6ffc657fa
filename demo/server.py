#!/usr/bin/env python3
"""Example of a service behind the gateway: it greets the user, and has no code for tokens or sessions.

The gateway forwards only requests with a valid token, and says whose it is in X-User-Id and X-User-Login. It removes
these headers from what clients send, so a service may believe them if only the gateway can reach it: this one listens
on a loopback address.
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Greeter(BaseHTTPRequestHandler):
    def do_GET(self):
        login, user_id = unquote(self.headers.get("X-User-Login", "stranger")), self.headers["X-User-Id"]
        body = f"Hello {login}, you are user {user_id}.\n".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Logs nothing: the gateway logs each request."""


ThreadingHTTPServer(("127.0.0.1", int(os.environ["DEMO_PORT"])), Greeter).serve_forever()
