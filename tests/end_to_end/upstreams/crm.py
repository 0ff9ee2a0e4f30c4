"""An MCP server over streamable HTTP, made with the MCP SDK that is here (version 1 or 2)."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

import uvicorn

from tests.end_to_end.upstreams.serving import CHAIN, JOURNAL, KEY, announce, listener

HOST = "mcp.crm.example"


def app() -> Any:
    security = import_module("mcp.server.transport_security").TransportSecuritySettings(
        allowed_hosts=[HOST]
    )
    if version("mcp").startswith("1."):
        make = import_module("mcp.server.fastmcp").FastMCP
        server = make("crm", transport_security=security)
        options = {}
    else:
        make = import_module("mcp.server.mcpserver").MCPServer
        server = make("crm")
        options = {"transport_security": security}

    @server.tool(name="contacts.update")
    def update(name: str, email: str) -> str:
        """Change a contact."""
        return f"{name} is now {email}"

    return server.streamable_http_app(**options)


class Noted:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            headers = [(name.decode(), value.decode()) for name, value in scope["headers"]]
            host = dict(headers)["host"]
            JOURNAL.note(host, scope["method"], scope["path"], headers)
        await self.inner(scope, receive, send)


if __name__ == "__main__":
    bound = listener()
    config = uvicorn.Config(
        Noted(app()), ssl_certfile=str(CHAIN), ssl_keyfile=str(KEY), log_level="warning"
    )
    announce(mcp=bound)
    uvicorn.Server(config).run(sockets=[bound])
