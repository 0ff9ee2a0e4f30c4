"""The two addons of mitmproxy that the engine uses, without the thirty others.

Its package imports them all, and with them a web framework, LDAP and a parser generator: a third of
the time that an engine takes to start. It is put in place here without being run.
"""

import importlib.util
import sys

_PACKAGE = "mitmproxy.addons"

if _PACKAGE not in sys.modules:
    _spec = importlib.util.find_spec(_PACKAGE)
    if _spec is None:
        raise ModuleNotFoundError(_PACKAGE)
    sys.modules[_PACKAGE] = importlib.util.module_from_spec(_spec)

# Its package comes first.
from mitmproxy.addons import proxyserver, tlsconfig  # noqa: E402
from mitmproxy.master import Master  # noqa: E402 - imports the package, too

__all__ = ["Master", "proxyserver", "tlsconfig"]
