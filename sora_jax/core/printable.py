"""Text of strangers, such as the name of a file, as it may be shown on a terminal or in a log."""


def printable(text: str) -> str:
    """Returns the text with whatever moves a cursor, begins a line or cannot be seen written out, as in "a\\x1b[2J"."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
