"""How an agent is kept away from the proxy beside it: another user, or namespaces of its own.

Linux only, but for `account`. Nothing here knows the command line or what a call is.
"""
