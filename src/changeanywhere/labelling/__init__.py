"""``changeanywhere label``: masks for imagery that has none, from a segmenter."""
