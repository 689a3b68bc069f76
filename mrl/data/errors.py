"""The error that the data package raises for people."""


class DataError(ValueError):
    """Data that cannot be found, read or used; the message says which and what to do."""
