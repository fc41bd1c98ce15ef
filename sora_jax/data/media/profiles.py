"""Pictures with a colour profile (ICC), as a screen shows them: in sRGB.

Without it the numbers of a wide gamut (Adobe RGB, Display P3: cameras and phones) look pale, and those of inks wrong.
"""

import functools
import io

from PIL import Image, ImageCms

# Of a profile's colour space: in which of Pillow's modes its numbers are, and which other modes become that.
_MODES = {
    "RGB": ("RGB", ("RGBA", "RGBX", "P", "PA", "L", "LA", "1")),
    "GRAY": ("L", ("LA", "1")),
    "CMYK": ("CMYK", ()),
}
# What profiles of sRGB itself are called: their pictures need no work, and lose nothing to rounding.
_SRGB = ("sRGB", "sRGB IEC61966-2.1", "sRGB built-in")


def in_srgb(image: Image.Image) -> Image.Image:
    """Returns the picture with its profile applied, its alpha kept; as it is where there is none that fits it.

    A profile that is damaged, or of other colours than the picture has, is ignored, as browsers do; so is that of 16
    bit greys. The intent is the profile's own.
    """
    data = image.info.get("icc_profile")
    found = _to_srgb(bytes(data)) if data else None
    if found is None or image.mode not in (found[0], *found[1]):
        return image
    mode, _, transform = found
    shown = ImageCms.applyTransform(image.convert(mode), transform)
    assert shown is not None
    if image.has_transparency_data:
        shown.putalpha(image.convert("RGBA").getchannel("A"))
    return shown


@functools.lru_cache(maxsize=8)
def _to_srgb(data: bytes) -> tuple[str, tuple[str, ...], ImageCms.ImageCmsTransform] | None:
    """Returns modes and what takes a profile's colours to sRGB; None where they are that, or nobody can."""
    try:
        profile = ImageCms.getOpenProfile(io.BytesIO(data))
        space = str(getattr(profile.profile, "xcolor_space", "")).strip()
        if space not in _MODES or ImageCms.getProfileDescription(profile).strip() in _SRGB:
            return None
        mode, others = _MODES[space]
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(profile))
        return mode, others, ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None
