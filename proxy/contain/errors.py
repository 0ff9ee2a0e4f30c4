"""The one error of this package."""


class ContainError(Exception):
    """The agent cannot be kept away as asked; the message says why and what to type instead."""
