"""What an image file really is, found out before a pixel is believed; the table is in ``docs/data.md``.

``facts`` (what is known of a file, and its bounds), ``tiff``, ``flat`` (PNG and JPEG), ``gate`` (any file: facts,
pixels and where they are valid), ``ground`` (place and ground sampling), ``classes`` (masks).
"""
