"""Pairs in the folders and files of others: ``changeanywhere export``."""
