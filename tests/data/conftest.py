"""A web server on 127.0.0.1 for the downloader's tests, with the faults that real ones have."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Site:
    """files: path -> content. ranges: whether Range is honoured. break_after: bytes to send before hanging up, for the
    next `breaks` requests. length: whether to announce the Content-Length. requests: [(path, Range or None)] seen."""

    def __init__(self):
        self.files, self.requests = {}, []
        self.ranges = self.length = True
        self.breaks, self.break_after = 0, 0
        self.status = 0
        self.url = ""


@contextmanager
def serve():
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            site.requests.append((self.path, wanted))
            content = site.files.get(self.path)
            if content is None or site.status:
                self.send_error(site.status or 404)
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and site.ranges else 0
            if start >= len(content) and start:
                self.send_error(416)
                return
            self.send_response(206 if wanted and site.ranges else 200)
            if wanted and site.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            if site.length:
                self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if site.breaks:
                site.breaks -= 1
                body = body[: site.break_after]
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def site():
    with serve() as site:
        yield site
