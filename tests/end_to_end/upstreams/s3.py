"""moto's server: the S3 API, each request written down before it is dispatched."""

from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from tests.end_to_end.upstreams.serving import CHAIN, JOURNAL, KEY, announce, listener


class Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        pass


class Noted:
    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        headers = [
            (name[5:].replace("_", "-"), value)
            for name, value in environ.items()
            if name.startswith("HTTP_")
        ]
        JOURNAL.note(environ["HTTP_HOST"], environ["REQUEST_METHOD"], environ["PATH_INFO"], headers)
        return self.moto(environ, start_response)


if __name__ == "__main__":
    bound = listener()
    server = make_server(
        "127.0.0.1",
        0,
        Noted(),
        threaded=True,
        request_handler=Quiet,
        ssl_context=(str(CHAIN), str(KEY)),
        fd=bound.fileno(),
    )
    announce(s3=bound)
    server.serve_forever()
