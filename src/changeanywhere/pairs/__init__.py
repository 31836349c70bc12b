"""Bi-temporal datasets: layout, writer, reader, card, report."""

from __future__ import annotations

from changeanywhere.pairs.containers import stream_pairs
from changeanywhere.pairs.reader import PairDataset, load_pairs

__all__ = ["PairDataset", "load_pairs", "stream_pairs"]
