"""The error that the data package raises for people, and how it lists names."""


class DataError(ValueError):
    """Data that cannot be found, read or used; the message says which and what to do."""


def some(names: list[str]) -> str:
    """The first five of them, and how many more there are."""
    shown = ", ".join(names[:5]) or "none"
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
