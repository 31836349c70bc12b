"""Who paints second dates: the protocol, those that come with the package, and the door for others."""

from __future__ import annotations
