"""The toy run with clips beside its clips, for tests of what depends on them."""

from ml_collections import ConfigDict

from tests import toy


def get_config() -> ConfigDict:
    """Returns the config: of the greys and boxes of clips, some are given, and clips beside see themselves alone."""
    c = toy.get_config()
    c.run = ("autoencoder", "prepare", "videos")
    c.context.kinds, c.context.blind = ("grey", "boxes"), True
    c.stages.videos.context = ConfigDict({"none": 0.2, "grey": 0.4, "grey+boxes": 0.4})
    return c
