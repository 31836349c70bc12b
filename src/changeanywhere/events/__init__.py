"""Change-event simulation on the mask alone (paper §2.3): numpy and scipy, no model."""

from __future__ import annotations

from changeanywhere.events.engine import EventContext, EventRequest, simulate
from changeanywhere.events.options import KINDS, PAPER_KINDS, EventOptions
from changeanywhere.seeds import pair_seed

__all__ = ["KINDS", "PAPER_KINDS", "EventContext", "EventOptions", "EventRequest", "pair_seed", "simulate"]
