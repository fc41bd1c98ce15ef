"""Names of files as people and programs give them: brackets, percent signs, other Unicode forms, as long as may be."""

import os
import unicodedata

from hypothesis import strategies as st

_PIECES = (
    *("[", "]", "[a-z]", "*", "?", "{0..2}", "{a,b}", "%", "%02d", "%s", "50%", "#0-1", ".png#0-0", "~", "$HOME"),
    *(
        "\u00e9",
        "e\u0301",
        "\u212b",
        "\ufb00",
        "\u0130",
        "赤い丸",
        "🐕",
        "\u202e",
        "\u200d",
        "\u2028",
        "\x7f",
        "\udcff",
    ),
    *(".", "..", "1.2", ".png", ".txt", " ", "  ", "\n", "\r\n", "\t", "-", "--", "-rf", "\\", "\\n", "\\xff", "/"),
    *("a", "A", "b", "1", "2", "_", "'", '"', ",", ";", ":", "|", "&", "null", "x" * 240, "\u00e9" * 120),
)
LONGEST = 255 - len(".jsonl")  # bytes, which leaves room for an ending


def fits(name: str) -> bool:
    """Returns whether files of this name, with an ending, can be written and are not hidden."""
    parts = name.split("/")
    return all(part.strip(".") and part[0] != "." and len(os.fsencode(part)) <= LONGEST for part in parts)


# Of a file without its ending, or of one in a folder of such a name.
NAMES = st.lists(st.sampled_from(_PIECES), min_size=1, max_size=5).map("".join).filter(fits)


def _relatives(name: str) -> st.SearchStrategy[str]:
    """Returns names that are easily taken for another one."""
    forms = (unicodedata.normalize(form, name) for form in ("NFC", "NFD", "NFKC"))
    cases = (name.upper(), name.lower())
    longer = (f"{name}{end}" for end in (".1", ".1.2", " ", "_1", "#0-1", ".png#0-0", ".png", ".txt", "."))
    others = (name.replace("\\", "/"), name.strip(), name.replace("%", "%%"))
    return st.sampled_from([name, *forms, *cases, *longer, *others]).filter(fits)


# Some that lie in one folder.
TOGETHER = NAMES.flatmap(lambda name: st.lists(_relatives(name) | NAMES, min_size=1, max_size=5, unique=True))
