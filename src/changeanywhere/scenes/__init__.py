"""Whole scenes: an image and land cover of any size in, a second date of all of it out, ready for a GIS.

``options`` → ``inputs`` (image, mask on its grid; ``vectors`` for polygons) → ``planning`` (events over the scene, by
windows) → ``exemplars`` and ``work`` (painted by windows, resumable) → ``rasters_out``, ``descriptions``, ``report``,
``tiles`` → ``generate``.
"""
