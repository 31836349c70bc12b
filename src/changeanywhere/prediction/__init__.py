"""Change maps from a trained detector: folders of pairs, or two images of any size."""
