"""A whole scene painted by windows: the same calls as on tiles, on a latent plane that the networks see by windows.

Changes that lie near each other are a group. A group that fits has one window of the canonical size around it, wherever
it lies; larger ones, and the free tail of the whole scene, go through the overlapping windows of :mod:`.canvas`, whose
predictions are averaged at every call. Noise follows from the place (:mod:`.place_noise`), so that neither the order of
windows nor what else is in the scene changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from changeanywhere.diffusion.blended import Calls, mask_conditions, unknown_cells
from changeanywhere.diffusion.canvas import AveragedCalls, Blend, Box, Corner, see_box
from changeanywhere.diffusion.exemplars import first_calls
from changeanywhere.diffusion.joint import JOINT_SAMPLERS, Begins, Windows, paint_jointly
from changeanywhere.diffusion.place_noise import PlaceNoise
from changeanywhere.diffusion.scene_groups import Changes, Cover, Group, changes_of, in_pixels
from changeanywhere.diffusion.scene_windows import Image, SceneWindows


@dataclass(frozen=True)
class Batch:
    """Groups that are painted together, and for each the calls at which its cells begin, the earliest groups first."""

    groups: tuple[Group, ...]
    starts: tuple[tuple[int, ...], ...]

    @property
    def first(self) -> Group:
        """One of them: what they share, it has."""
        return self.groups[0]


@dataclass(frozen=True)
class Trial:
    """A sample of the work: ``paint`` does it and gives the bytes of its result; the scene takes ``times`` as long."""

    paint: Callable[[], int]
    times: float
    windows: int


@dataclass
class _Ground:
    """What is painted at once: ``[B, C, h, w]`` each, masks int64 ``[B, 4h, 4w]``."""

    target: Tensor
    """What is held, clean: the exemplar on own cells, date 1 elsewhere."""
    noise: PlaceNoise
    own: Tensor
    start: Tensor
    """First call that paints a cell; ``num_steps``: none does."""
    masks: Tensor

    @cached_property
    def known_noise(self) -> Tensor:
        """Where it is the same at every call."""
        return self.noise.draw("known").to(self.target)


class ScenePainter(SceneWindows):
    """Paints one scene; every result follows from view, sampling, seed and place alone (up to the last bits of sums,
    which depend on ``size``, the windows that go through the networks at once)."""

    _known: Tensor | None = None
    """Date 1 of the whole scene, while its changes are painted."""

    @cached_property
    def changes(self) -> Changes:
        """What is painted together."""
        return changes_of(self.view, self.plane, self._sampling, self._networks.denoiser.size_multiple)

    @torch.no_grad()
    def whole(self) -> Iterator[tuple[Corner, Tensor]]:
        """All of the scene with its free tail, window by window of the plane's grid, row by row: corners in cells and
        pixels ``[C, 4 side, 4 side]`` in :data:`CODES`."""
        plane, steps = self.plane, self._sampling.num_steps
        noise = PlaceNoise(self._seed, [(plane.row, plane.column)], (self._channels, plane.height, plane.width))
        target = self._encoded("encode", plane, plane.windows(), self.view.image)
        self._known = target.clone()
        held = torch.from_numpy(self.changes.unknown.copy())[None, None]
        begun, latents = torch.zeros_like(held), torch.zeros_like(target)
        for group, part in self._held():
            own, start, painted, exemplar = self._taken(group, part)
            fresh = own & (start < self._num_held)
            self._put(target, group, exemplar, own)
            self._put(held, group, start == steps, own)
            self._put(latents, group, painted, fresh)
            self._put(begun, group, fresh, fresh)
        self._known = None
        later = noise.later(self._num_held)
        calls = self._calls(later, plane, plane.windows(), "tail")
        fixed = noise.draw("known") if self._sampling.known_noise == "fixed" else None
        x = calls.noised(target, later.draw("known") if fixed is None else fixed, self._num_held)
        x = torch.where(begun, latents, x)
        del begun, latents
        x = calls.run(range(self._num_held, steps), x, target, fixed, held, self._branches())
        x = torch.where(held, target, x)
        yield from self._decoded("decode", plane, plane.windows(), (x, target), self._real)

    @torch.no_grad()
    def patches(self, batches: Sequence[Batch]) -> Iterator[Tensor]:
        """The groups of each batch with their regions, painted to the end: pixels ``[B, C, 4h, 4w]`` in
        :data:`CODES`."""
        yield from self._run([(f"patch-{self._name(each)}", partial(self._patch, each)) for each in batches])

    def trials(self, everywhere: bool) -> list[Trial]:
        """A batch of groups, and a batch of the grid's windows where all is painted."""
        found = []
        if self.batches:
            costs = [self._cost(batch) for batch in self.batches]
            middle = sorted(range(len(costs)), key=lambda n: costs[n])[len(costs) // 2]
            work = partial(self._hold if everywhere else self._patch, self.batches[middle])
            windows = sum(len(group.whole.corners) for group in self.changes.groups)
            found.append(Trial(lambda: _size(work()), sum(costs) / costs[middle], windows))
        if everywhere:
            corners = self.plane.windows()
            found.append(Trial(self._try_windows, len(corners) / min(len(corners), self._size), len(corners)))
        return found

    def _cost(self, batch: Batch) -> float:
        """Cells through networks, roughly: encoders three times, and what the held calls see."""
        cost = 0.0
        for group, starts in zip(batch.groups, batch.starts, strict=True):
            calls = self._num_held - starts[0] if starts else 0
            held, whole = group.held, group.whole
            cost += calls * len(held.corners) * held.side**2 + 3 * len(whole.corners) * whole.side**2
        return cost

    @torch.no_grad()
    def _try_windows(self) -> int:
        """Encode, tail and decode a batch of the grid's windows."""
        some, side, steps = self.plane.windows()[: self._size], self.plane.side, self._sampling.num_steps
        boxes = [in_pixels((*corner, side, side)) for corner in some]
        known = self._encode([self.view.image(box) for box in boxes])
        masks = torch.from_numpy(np.stack([self.view.mask(box) for box in boxes]).astype(np.int64)).to(self._device)
        noise = PlaceNoise(self._seed, some, (self._channels, side, side))
        calls = Calls(self._networks.denoiser, self._networks.schedule, self._sampling, noise)
        conditions = mask_conditions(self._networks.denoiser, masks, self._sampling.guidance_scale)
        fixed = noise.draw("known").to(known)
        held = torch.zeros_like(known[:, :1], dtype=torch.bool)
        x = calls.run(range(self._num_held, steps), known, known, fixed, held, conditions)
        real = [self._real(box) for box in boxes]
        return _size(known) + _size(x) + _size(self._pixels(x, real, known))

    def _held(self) -> Iterator[tuple[Group, Tensor]]:
        """Each group with its latents after the held calls and their target: ``[2, 3, h, w]`` of its region's middle.
        Groups of which nothing begins before the tail among them."""
        units = [(f"held-{self._name(each)}", partial(self._hold, each)) for each in self.batches]
        for batch, parts in zip(self.batches, self._run(units), strict=True):
            yield from zip(batch.groups, parts, strict=True)

    def _name(self, batch: Batch) -> str:
        """Of no other batch of the scene: boxes of groups may nest and begin in one cell, numbers are a group's own."""
        first = batch.first
        row, column, height, width = first.box
        place = f"{self.plane.row + row}-{self.plane.column + column}-{height}x{width}"
        return f"{place}-{first.number}-{len(batch.groups)}"

    @cached_property
    def batches(self) -> list[Batch]:
        """Groups whose windows go through the networks together: of one size, and where the sampler does not allow for
        others (see :mod:`.joint`) those whose cells begin at the same calls. Large groups alone."""
        alike: dict[tuple[int, bool, tuple[int, ...]], list[tuple[tuple[int, ...], Group]]] = {}
        batches = []
        for group in self.changes.groups:
            own, start = self.changes.own(group), self._start(group)[0, 0].numpy()
            starts = tuple(sorted({int(call) for call in np.unique(start[own]) if call < self._num_held}))
            if group.is_small:
                key = (group.held.side, bool(starts), () if self._is_joint else starts)
                alike.setdefault(key, []).append((starts, group))
            else:
                batches.append(Batch((group,), (starts,)))
        for _, some in sorted(alike.items()):
            some.sort(key=lambda each: (each[0], each[1].number))
            for first in range(0, len(some), self._size):
                begun, groups = zip(*some[first : first + self._size], strict=True)
                batches.append(Batch(groups, begun))
        return batches

    @property
    def _is_joint(self) -> bool:
        """Whether groups that begin at different calls go through them together."""
        sampling = self._sampling
        fixed = sampling.known_noise == "fixed" and sampling.is_deterministic
        return fixed and not self._is_from_noise and sampling.sampler in JOINT_SAMPLERS

    def _start(self, group: Group) -> Tensor:
        """First call of each cell of a group's region, int64 ``[1, 1, h, w]``."""
        pixels = in_pixels(group.region)
        strength = self.view.strength(pixels, in_pixels(group.box))
        if strength is None:
            return torch.zeros(1, 1, *group.region[2:], dtype=torch.int64)
        given, changed = torch.from_numpy(strength)[None], torch.from_numpy(self.view.change(pixels))[None]
        return first_calls(given, changed, self._moments, self._num_held, self._sampling)

    def _hold(self, batch: Batch) -> Tensor:
        """Latents and targets ``[B, 2, 3, h, w]`` on the CPU."""
        ground = self._ground(batch)
        x = self._through(batch, ground)
        return torch.stack([x, _middle(ground.target, x.shape[-1]) if batch.first.is_small else ground.target], 1).cpu()

    def _through(self, batch: Batch, ground: _Ground) -> Tensor:
        """The held calls, on the middle of the windows where the network need not see more: latents at the tail."""
        starts, first = batch.starts[0], batch.first
        if first.is_small:
            ground = self._in_the_middle(first.held.side, ground)
        calls, conditions = self._calls_of(batch, ground, first.held, ("calls", ground.noise))
        fixed = ground.known_noise if self._sampling.known_noise == "fixed" else None
        if not starts:
            return calls.noised(ground.target, self._noise_of(ground, ground.noise), self._num_held)
        if first.is_small and self._is_joint:
            windows = Windows(ground.target, ground.known_noise, ground.own, ground.start, conditions)
            return paint_jointly(calls, windows, Begins(batch.starts), self._num_held)
        if self._is_from_noise:
            x = ground.noise.draw("start").to(ground.target)
        else:
            x = calls.noised(ground.target, self._noise_of(ground, ground.noise), starts[0])
        for begin, end in pairwise((*starts, self._num_held)):
            held = ~ground.own | (ground.start > begin)
            if isinstance(calls, AveragedCalls):  # what is held in all of a window needs no network
                calls.corners = first.held.showing(~held[0, 0].numpy())
            x = calls.run(range(begin, end), x, ground.target, fixed, held, conditions)
        return x

    def _noise_of(self, ground: _Ground, fresh: PlaceNoise) -> Tensor:
        """On what is known: the same at every call, or the next of ``fresh``."""
        fixed = self._sampling.known_noise == "fixed"
        return ground.known_noise if fixed else fresh.draw("known").to(ground.target)

    def _calls_of(
        self, batch: Batch, ground: _Ground, cover: Cover, stage: tuple[str, PlaceNoise]
    ) -> tuple[Calls, list[Tensor]]:
        """The sampler's calls of a batch, and the conditions that they take; ``stage``: a name, and where noise comes
        from that is drawn anew at every call."""
        first, denoiser, (name, noise) = batch.first, self._networks.denoiser, stage
        if first.is_small:
            calls = Calls(denoiser, self._networks.schedule, self._sampling, noise)
            return calls, mask_conditions(denoiser, ground.masks, self._sampling.guidance_scale)
        part = self.part_of(first, cover)
        return self._calls(noise, part, cover.corners, f"{name}-{self._name(batch)}"), self._branches()

    def _patch(self, batch: Batch) -> Tensor:
        """Pixels in :data:`CODES` ``[B, C, 4h, 4w]`` on the CPU."""
        ground, sampling, first = self._ground(batch), self._sampling, batch.first
        middle = self._through(batch, ground)
        later = ground.noise.later(self._num_held)
        calls, conditions = self._calls_of(batch, ground, first.whole, ("end", later))
        x = calls.noised(ground.target, self._noise_of(ground, later), self._num_held)
        edge = (x.shape[-1] - middle.shape[-1]) // 2 if first.is_small else 0
        inner = F.pad(middle, (edge,) * 4)
        x = torch.where(ground.own & (ground.start < self._num_held), inner, x)
        never = ground.own & (ground.start == sampling.num_steps)
        unknown = unknown_cells(ground.masks, ground.own)
        fixed = ground.known_noise if sampling.known_noise == "fixed" else None
        tail = range(self._num_held, sampling.num_steps)
        x = calls.run(tail, x, ground.target, fixed, unknown | never, conditions)
        kept = ~ground.own if self._num_held == sampling.num_steps else unknown
        x = torch.where(kept | never, ground.target, x)
        if first.is_small:
            real = [self._real(in_pixels(group.region), in_pixels(group.box)) for group in batch.groups]
            return self._pixels(x, real, ground.target).cpu()
        part, place = self.part_of(first, first.whole), in_pixels(first.region)

        def real_of(box: Box) -> Image:
            return self._real((box[0] + place[0], box[1] + place[1], *box[2:]), in_pixels(first.box))

        blend = Blend(self._bands, part, 4)
        for corner, pixels in self._decoded(
            f"pixels-{self._name(batch)}", part, first.whole.corners, (x, ground.target), real_of
        ):
            blend.add(corner, pixels.float())
        return blend.result().round().to(torch.int16)

    # Grounds

    def _ground(self, batch: Batch) -> _Ground:
        """Of groups with one window each, or of one with several."""
        groups, first = batch.groups, batch.first
        device = self._device if first.is_small else torch.device("cpu")
        own = torch.from_numpy(np.stack([self.changes.own(group) for group in groups]))[:, None].to(device)
        masks = torch.from_numpy(np.stack([self.view.mask(in_pixels(g.region)) for g in groups]).astype(np.int64))
        start = torch.cat([self._start(group) for group in groups]).to(device)
        target = self._target(batch, own).to(device)
        corners = [(self.plane.row + g.region[0], self.plane.column + g.region[1]) for g in groups]
        noise = PlaceNoise(self._seed, corners, (self._channels, *first.region[2:]))
        return _Ground(target, noise, own, torch.where(own, start, self._sampling.num_steps), masks.to(device))

    def _target(self, batch: Batch, own: Tensor) -> Tensor:
        """What of a batch is held: latents of date 1, on ``own`` cells those of the exemplar. Where all of the scene
        was encoded already, date 1 is taken from there."""
        groups, first, exemplars = batch.groups, batch.first, not self._is_from_noise
        made: Tensor | None = None
        if first.is_small:
            if exemplars:
                made = self._encode([self.view.exemplar(in_pixels(g.region), in_pixels(g.box)) for g in groups])
            if self._known is None:
                known = self._encode([self.view.image(in_pixels(group.region)) for group in groups])
        else:
            offset, name = in_pixels(first.region), self._name(batch)
            part, corners = self.part_of(first, first.whole), first.whole.corners

            def shifted(box: Box) -> Box:
                return box[0] + offset[0], box[1] + offset[1], box[2], box[3]

            def exemplar(box: Box) -> Image:
                return self.view.exemplar(shifted(box), in_pixels(first.box))

            if exemplars:
                made = self._encoded(f"exemplar-{name}", part, corners, exemplar)
            if self._known is None:
                known = self._encoded(f"known-{name}", part, corners, lambda box: self.view.image(shifted(box)))
        if self._known is not None:
            known = torch.cat([see_box(self._known, group.region) for group in groups]).to(own.device)
        return known if made is None else torch.where(own, made, known)

    def _in_the_middle(self, side: int, ground: _Ground) -> _Ground:
        """The part of the windows that the held calls go to."""
        edge = (self.plane.side - side) // 2
        corners = [(row + edge, column + edge) for row, column in ground.noise.corners]
        noise = PlaceNoise(self._seed, corners, (self._channels, side, side))
        target, own, start = (_middle(each, side) for each in (ground.target, ground.own, ground.start))
        return _Ground(target, noise, own, start, _middle(ground.masks, side * 4))

    def _taken(self, group: Group, part: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Own cells and their first calls of the part that a group's held calls gave; its latents and targets."""
        own, start = torch.from_numpy(self.changes.own(group))[None, None], self._start(group)
        if group.is_small:
            own, start = _middle(own, part.shape[-1]), _middle(start, part.shape[-1])
        return own, start, part[:1], part[1:]

    def _put(self, whole: Tensor, group: Group, part: Tensor, own: Tensor) -> None:
        """Write the ``own`` cells of ``part`` ``[1, C, h, w]``, the middle of a group's region, into the plane."""
        height, width = part.shape[-2:]
        row = group.region[0] + (group.region[2] - height) // 2
        column = group.region[1] + (group.region[3] - width) // 2
        rows, columns = np.nonzero(own[0, 0].numpy())
        whole[..., rows + row, columns + column] = part[..., rows, columns].to(whole)


def _middle(tensor: Tensor, side: int) -> Tensor:
    """The square of ``side`` in the middle of ``[..., s, s]``."""
    first = (tensor.shape[-1] - side) // 2
    return tensor[..., first : first + side, first : first + side]


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
