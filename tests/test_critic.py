"""The critic of noisy latents: what it learns, which start it chooses, where it pushes, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import changeanywhere as ca
from changeanywhere.cli import run as command
from changeanywhere.diffusion.blended import Calls, changed_cells, mask_conditions, paint_latents
from changeanywhere.diffusion.critic import Pushed, best_seeds, shown
from changeanywhere.diffusion.options import CriticOptions, Sampling
from changeanywhere.diffusion.place_noise import NoiseStreams
from changeanywhere.errors import ConfigError, LegendError, ModelError, OutputError
from changeanywhere.legend import Legend, LegendClass
from changeanywhere.models.borrowed import DDPMScheduler
from changeanywhere.models.critic import Critic, cell_classes, latents_hash
from changeanywhere.models.denoiser import Denoiser
from changeanywhere.models.first_stage import FirstStage
from changeanywhere.models.folder import load_model, noise_schedule, save_model
from changeanywhere.progress import silent
from changeanywhere.sources import SourceOptions, open_source
from changeanywhere.training.critic import CriticTraining, train_critic
from changeanywhere.training.denoiser import _tiles_of
from changeanywhere.training.latents import LatentCache, build_latent_cache
from changeanywhere.training.processes import Processes
from changeanywhere.training.recipe import CriticRecipe, DataRecipe, DenoiserRecipe, Recipe, RunRecipe
from conftest import tiny_model, write_source


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Recipe:
    source = write_source(tmp_path_factory.mktemp("tiles") / "source")
    return Recipe(
        DataRecipe(source=str(source), tile_size=64),
        denoiser=DenoiserRecipe(views=2),
        critic=CriticRecipe(channels=[8, 16], batch_size=6, num_steps=60, learning_rate=5e-3, warmup_steps=5),
        run=RunRecipe(num_workers=0, save_every=20, log_every=10),
        init=str(tiny_model_folder),
    )


@pytest.fixture(scope="module")
def critic(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    return train_critic(source, recipe, tmp_path_factory.mktemp("run"))


def latents_of(folder: Path, recipe: Recipe) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the tiles that it was trained on, with their masks."""
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    samples = [source.read(i) for i in range(4)]
    images = torch.from_numpy(np.stack([sample.pixels() for sample in samples])).permute(0, 3, 1, 2)
    with torch.no_grad():
        latents = load_model(folder).first_stage.encode(images)
    return latents, torch.from_numpy(np.stack([sample.mask for sample in samples]).astype(np.int64))


@pytest.mark.numerical
def test_it_learns_to_read_latents_and_less_of_noise(critic: Path, recipe: Recipe, tiny_model_folder: Path) -> None:
    log = [json.loads(line) for line in (critic.parent / "training/critic/metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    net = Critic.load(critic)
    latents, masks = latents_of(tiny_model_folder, recipe)
    classes = cell_classes(masks, net.legend.num_classes)
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    right = []
    for time in (0, 990):
        alpha = float(noise_schedule().alphas_cumprod[time])
        with torch.no_grad():
            noisy = alpha**0.5 * latents + (1 - alpha) ** 0.5 * noise
            read = net(noisy, torch.full((4,), time)).argmax(1) + 1
        right.append(float((read == classes)[(classes > 1)].float().mean()))
    assert right[0] > 0.5 and right[0] > right[1] + 0.2


def test_cells_take_their_most_frequent_class() -> None:
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, :4, :4] = 3
    mask[0, 0, :3] = 2
    mask[0, 4, 0] = 5
    assert cell_classes(mask, 7)[0].tolist() == [[3, 0], [5, 0]], "unknown ground counts for nobody"


def test_a_run_resumes_with_its_latents(recipe: Recipe, critic: Path, tmp_path: Path) -> None:
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    train_critic(source, replace(recipe, critic=replace(recipe.critic, num_steps=20)), tmp_path)
    state = torch.load(tmp_path / "training/critic/checkpoint.pt", weights_only=True)
    assert state["step"] == 20
    train_critic(source, recipe, tmp_path)
    assert Critic.load(tmp_path / "critic").latents == Critic.load(critic).latents


def test_a_run_goes_on_in_the_views_it_was_begun_in(recipe: Recipe, tmp_path: Path) -> None:
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    short = replace(recipe, critic=replace(recipe.critic, num_steps=1))
    train_critic(source, short, tmp_path)
    other = replace(short, denoiser=DenoiserRecipe(views=1))
    with pytest.raises(OutputError, match=r"was started with denoiser\.views = 2, now 1; give another --out or"):
        train_critic(source, other, tmp_path)
    frozen = tmp_path / "training/critic/recipe.json"
    old = json.loads(frozen.read_text())
    del old["denoiser"]  # as an earlier edition wrote it
    frozen.write_text(json.dumps(old))
    with pytest.raises(OutputError, match=r"or seen in other views \(denoiser\.views\), than the run was begun with"):
        train_critic(source, other, tmp_path)
    train_critic(source, short, tmp_path)


def test_latents_are_shared_where_they_are_the_same_and_let_alone_where_they_are_not(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    short = replace(recipe, critic=replace(recipe.critic, num_steps=1))
    first_stage, processes = load_model(Path(str(recipe.init))).first_stage, Processes(recipe.run)
    encoded, encode = list[int](), type(first_stage).encode

    def counted(self: FirstStage, images: torch.Tensor) -> torch.Tensor:
        encoded.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(FirstStage, "encode", counted)

    def train_both_ways(flip: str) -> list[int]:
        encoded.clear()
        denoiser = replace(recipe, denoiser=DenoiserRecipe(views=2, flip=flip))
        cache = _tiles_of(denoiser, source, first_stage, processes, tmp_path, silent)
        train_critic(source, short, tmp_path)
        assert len(cache) == 6 and cache.batch(2, 0, 0, range(2))[0].abs().min() > 0
        return encoded

    train_critic(source, short, tmp_path)
    assert sum(encoded) == 12 and not (tmp_path / "training/latents").exists()
    assert not train_both_ways("none")
    assert sum(train_both_ways("horizontal")) == 12, "mirrored left to right, not turned: others"
    assert not train_both_ways("horizontal"), "each has its own"
    shutil.rmtree(tmp_path / "training/critic/latents")
    assert sum(train_both_ways("none")) == 12 and not (tmp_path / "training/critic/latents").exists()


def test_whoever_encodes_beside_another_spoils_nothing(
    recipe: Recipe, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two at once in one folder, one of which dies half way; then again, with what was there before it."""
    monkeypatch.setattr("changeanywhere.training.latents.ENCODE_BATCH", 1)
    source, processes = open_source(Path(recipe.data.source), SourceOptions(tile_size=64)), Processes(recipe.run)
    whole, dying = (load_model(tiny_model_folder).first_stage for _ in range(2))
    encode, calls = whole.encode, list[str]()

    def build(first_stage: FirstStage) -> LatentCache:
        return build_latent_cache(tmp_path / "latents", source, first_stage, range(1), len(source), processes)

    def dies(images: torch.Tensor) -> torch.Tensor:
        calls.append("dying")
        if calls.count("dying") == 2:
            raise ModelError("killed")
        return encode(images)

    def beside(images: torch.Tensor) -> torch.Tensor:
        calls.append("whole")
        if calls.count("whole") == 3:
            with ThreadPoolExecutor(1) as pool, pytest.raises(ModelError, match="killed"):
                pool.submit(build, dying).result()
        return encode(images)

    monkeypatch.setattr(dying, "encode", dies)
    monkeypatch.setattr(whole, "encode", beside)
    cache = build(whole)
    assert calls.count("whole") == 6 and all(np.any(cache.latents[tile]) for tile in range(6))
    assert all(np.array_equal(cache.masks[tile], source.read_mask(tile)) for tile in range(6))
    before = np.array(cache.latents)
    turned = build_latent_cache(tmp_path / "latents", source, whole, range(2), len(source), processes)
    assert turned.latents.shape[1] == 2 and np.array_equal(cache.latents, before), "who reads the others goes on"
    assert [path.name for path in tmp_path.iterdir()] == ["latents"]


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def of_fewer(file: Path) -> None:
    np.save(file, np.load(file)[1:])


@pytest.mark.parametrize("damage", [cut, of_fewer, Path.unlink, lambda file: file.write_bytes(b""),
                                    lambda file: np.save(file, np.load(file).astype(np.float32)),
                                    lambda file: file.write_bytes(b"x" * 5000)])  # fmt: skip
@pytest.mark.parametrize("name", ["latents.npy", "masks.npy"])
def test_latents_that_are_not_whole_are_encoded_again(
    damage: Callable[[Path], None], name: str, recipe: Recipe, tiny_model_folder: Path, tmp_path: Path
) -> None:
    source, processes = open_source(Path(recipe.data.source), SourceOptions(tile_size=64)), Processes(recipe.run)
    first_stage = load_model(tiny_model_folder).first_stage

    def build() -> LatentCache:
        return build_latent_cache(tmp_path / "latents", source, first_stage, range(1), len(source), processes)

    before = build()
    latents_, masks = np.array(before.latents), np.array(before.masks)
    del before
    damage(tmp_path / "latents" / name)
    after = build()
    assert np.array_equal(after.latents, latents_) and np.array_equal(after.masks, masks)


class Painted(Critic):
    """Reads a latent's first channel as the probability of class 4."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.legend = ca.load_legend("mini")

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(latents), 7, *latents.shape[2:])
        logits[:, 3] = latents[:, 0]
        return logits


def test_the_start_that_shows_most_is_chosen_pair_by_pair() -> None:
    masks = torch.full((3, 16, 16), 4)
    changes = torch.zeros(3, 16, 16, dtype=torch.bool)
    changes[:2, 4:12, 4:12] = True
    tried: list[list[int]] = []

    def paint(seeds: Sequence[int], sampling: Sampling) -> torch.Tensor:
        assert sampling.num_steps == 2 and sampling.free_fraction == 0
        tried.append(list(seeds))
        # Pair 0 shows most in its third start, pair 1 in its first; pair 2 changes nothing.
        values = [[0.0, 2.0, 0.0], [1.0, 1.0, 1.0], [3.0, 0.0, 5.0]][len(tried) - 1]
        return torch.tensor(values).view(3, 1, 1, 1).expand(3, 3, 4, 4)

    options = CriticOptions(Path("x"), starts=3, calls=2)
    chosen = best_seeds(paint, Painted(), (masks, changes), [7, 8, 9], Sampling(), options)
    assert chosen == [tried[2][0], 8, 9], "nothing to see: its own seed"
    assert tried[0] == [7, 8, 9] and len({seed for seeds in tried for seed in seeds}) == 9


def test_a_push_moves_changed_cells_towards_the_class_at_early_calls_only() -> None:
    model = tiny_model()
    masks, changes = torch.full((2, 64, 64), 4), torch.zeros(2, 64, 64, dtype=torch.bool)
    changes[0, 16:32, 16:32] = True
    changed = changed_cells(changes)
    options = CriticOptions(Path("x"), push=0.5, until=300)
    pushed = Pushed(model.denoiser, Painted(), model.schedule, changed, options, Sampling())
    plain: Denoiser = model.denoiser
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        late, early = torch.tensor([200, 200]), torch.tensor([700, 700])
        assert torch.equal(pushed(x, late, pushed.encode_masks(masks)), plain(x, late, plain.encode_masks(masks)))
        moved = plain(x, early, plain.encode_masks(masks)) - pushed(x, early, pushed.encode_masks(masks))
        nobody = torch.ones(2, dtype=torch.bool)
        free = pushed(x, early, pushed.encode_masks(masks, nobody))
        assert torch.equal(free, plain(x, early, plain.encode_masks(masks, nobody)))
    alpha = float(model.schedule.alphas_cumprod[700]) ** 0.5
    inside = changed.expand_as(moved)
    assert bool((moved[~inside] == 0).all()), "what did not change is nobody's to push"
    assert bool((moved[:, :1][changed] > 0).all()) and bool((moved[:, 1:] == 0).all()), "more of channel 0 is class 4"
    # Root mean square over cells and channels; noise moves by alpha where the clean latent moves by sigma.
    size = float(moved[0].square().sum() / changed[0].sum() / 3) ** 0.5
    assert size == pytest.approx(0.5 * alpha, rel=1e-4)


def test_a_push_raises_what_the_critic_reads(critic: Path, tiny_model_folder: Path, recipe: Recipe) -> None:
    model, net = load_model(tiny_model_folder), Critic.load(critic)
    latents, masks = latents_of(tiny_model_folder, recipe)
    changes = torch.zeros(masks.shape, dtype=torch.bool)
    changes[:, 20:44, 8:32] = True
    masks = torch.where(changes, 4, masks)
    sampling = Sampling(num_steps=6, free_fraction=0.0)
    scores = []
    for push in (0.0, 2.0):
        options = CriticOptions(critic, push=push, until=0)
        changed = changed_cells(changes)
        pushed = Pushed(model.denoiser, net, model.schedule, changed, options, sampling)
        denoiser = pushed if push else model.denoiser
        painted = paint_latents(denoiser, model.schedule, latents, masks, changes, [1, 2, 3, 4], sampling)
        scores.append(float(shown(net, painted, (masks, changes)).mean()))
    assert scores[1] > scores[0]


@pytest.mark.parametrize("more", [
    ["--critic.starts", "3", "--critic.calls", "2"],
    ["--critic.push", "0.5"],
    ["--critic.push", "0.5", "--guidance-scale", "2", "--guidance-interval", "[200, 700]"],
    ["--critic.push", "0.5", "--free-fraction", "[0, 1]", "--exemplar-strength", "0.9"],
], ids=["starts", "push", "push, guided at some calls", "push, by the tails of pairs"])  # fmt: skip
def test_generate_takes_a_critic(
    more: list[str], critic: Path, source_folder: Path, tiny_model_folder: Path, tmp_path: Path
) -> None:
    arguments = ["generate", "--source", str(source_folder), "--model", str(tiny_model_folder), "--tile-size", "64"]
    arguments += ["--num-steps", "3", "--num-pairs", "4", "--dtype", "float32"]
    assert command([*arguments, "--out", str(tmp_path / "plain")]) == 0
    given = [*arguments, "--critic.model", str(critic), *more]
    assert command([*given, "--out", str(tmp_path / "set")]) == 0
    assert command([*given, "--out", str(tmp_path / "again")]) == 0
    plain, pairs, again = (ca.load_pairs(tmp_path / name) for name in ("plain", "set", "again"))
    assert any(not np.array_equal(pairs[i].image_t2, plain[i].image_t2) for i in range(4))
    assert all(np.array_equal(pairs[i].image_t2, again[i].image_t2) for i in range(4))
    said = pairs[0].metadata["settings"]["painter"]["critic"]
    assert said["model"] == "critic" and len(said["hash"]) == 16
    assert "critic" not in plain[0].metadata["settings"]["painter"]


def test_a_push_ends_at_a_timestep_of_1000_of_a_model_of_200_too() -> None:
    model, changed = tiny_model(), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    masks, x = torch.full((1, 64, 64), 4), torch.randn(1, 3, 16, 16)
    short = DDPMScheduler(200, 0.0015, 0.0205, "scaled_linear", clip_sample=False)
    options, sampling = CriticOptions(Path("x"), push=0.5, until=400), Sampling(num_steps=8)
    pushed = Pushed(model.denoiser, Painted(), short, changed, options, sampling)
    with torch.no_grad():
        for timestep in (20, 79, 80, 150):
            times = torch.tensor([timestep])
            plain = model.denoiser(x, times, model.denoiser.encode_masks(masks))
            moved = pushed(x, times, pushed.encode_masks(masks))
            assert torch.equal(plain, moved) == (timestep < 80)


@pytest.mark.parametrize("interval", [None, [500, 800]])
def test_a_push_is_as_long_at_calls_that_are_not_guided(interval: list[int] | None) -> None:
    """What a call comes to once its branches are put together is moved alike."""
    model, changed = tiny_model(), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    masks, x = torch.full((1, 64, 64), 4), torch.randn(1, 3, 16, 16)
    sampling = Sampling(num_steps=8, guidance_scale=4.0, guidance_interval=interval)
    options = CriticOptions(Path("x"), push=0.5, until=300)
    pushed = Pushed(model.denoiser, Painted(), model.schedule, changed, options, sampling)
    lengths, guided = [], set()
    with torch.no_grad():
        for net in (model.denoiser, pushed):
            calls = Calls(net, model.schedule, sampling, NoiseStreams([1], x.shape[1:]))
            conditions = mask_conditions(net, masks, sampling.guidance_scale)
            early = [call for call, time in enumerate(calls.timesteps) if time >= 300]
            lengths.append([calls.predict(x, call, conditions) for call in early])
            guided = {sampling.guides(calls.timesteps[call]) for call in early}
    assert guided == ({True} if interval is None else {True, False})
    for call, plain, moved in zip(early, *lengths, strict=True):
        alpha = float(model.schedule.alphas_cumprod[calls.timesteps[call]]) ** 0.5
        assert float((moved - plain).square().mean().sqrt()) == pytest.approx(0.5 * alpha, rel=1e-3), call


@pytest.mark.numerical
def test_parts_and_processes_add_up_to_the_batch_wherever_its_ground_is_known(
    recipe: Recipe, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = replace(recipe.data, source=str(write_source(tmp_path / "half")))
    for number, file in enumerate(sorted((tmp_path / "half" / "masks").iterdir())):
        mask = np.array(Image.open(file))
        mask[: number * 10] = 0  # the more unknown the later
        Image.fromarray(mask).save(file)
    source = open_source(Path(data.source), SourceOptions(tile_size=64))
    one = replace(recipe, data=data, critic=replace(recipe.critic, batch_size=4))
    first_stage = load_model(tiny_model_folder).first_stage
    gradients, losses = [], []
    for parts, count in ((1, 1), (4, 1), (1, 2), (2, 2)):
        added, said = 0.0, 0.0
        for rank in range(count):
            run = replace(one.run, accumulation_steps=parts)
            processes = Processes(run)
            cache = build_latent_cache(tmp_path / "cache", source, first_stage, range(1), len(source), processes)
            monkeypatch.setattr(processes, "count", count)
            monkeypatch.setattr(processes, "rank", rank)
            training = CriticTraining(replace(one, run=run), processes, source, "", cache)
            _, masks = cache.batch(4, one.run.seed, 0, range(4))
            known = (cell_classes(masks, source.legend.num_classes) > 0).sum()
            monkeypatch.setattr(processes, "sum", lambda _, known=known: known)  # what the processes know together
            batch = next(training.batches(0))
            for part in zip(*(rows.chunk(parts) for rows in batch), strict=True):
                said += float(training.backward(part, 0)["loss"].detach()) / (parts * count)
            weight = training.critic.unet.conv_in.weight
            assert weight.grad is not None
            added = added + weight.grad / count
        gradients.append(added)
        losses.append(said)
    for gradient, loss in zip(gradients[1:], losses[1:], strict=True):
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-6)
        assert loss == pytest.approx(losses[0], rel=1e-4)


def test_it_reads_noise_as_the_model_that_it_is_for_makes_it(critic: Path, recipe: Recipe, tmp_path: Path) -> None:
    model, usual = tiny_model(), noise_schedule()
    model.schedule = DDPMScheduler(1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    save_model(model, tmp_path / "model")
    own = replace(recipe, critic=replace(recipe.critic, num_steps=2), init=str(tmp_path / "model"))
    source = open_source(Path(recipe.data.source), SourceOptions(tile_size=64))
    folder = train_critic(source, own, tmp_path / "run")
    first_stage, net = tmp_path / "model" / "first_stage", Critic.load(folder)
    net.check_model(first_stage, model.schedule, source.legend, folder)
    for each, schedule in ((net, usual), (Critic.load(critic), model.schedule)):
        with pytest.raises(ModelError, match=r"under another noise schedule than that of .*model; train one for"):
            each.check_model(first_stage, schedule, source.legend, folder)
    assert "schedule" not in json.loads((critic / "critic.json").read_text()), "the usual one is not said"
    state = torch.load(tmp_path / "run/training/critic/checkpoint.pt", weights_only=True)
    del state["schedule"]
    torch.save(state, tmp_path / "run/training/critic/checkpoint.pt")
    with pytest.raises(OutputError, match="has another noise schedule than the one that the run was begun with"):
        train_critic(source, own, tmp_path / "run")


def test_what_does_nothing_or_does_not_fit_is_refused(
    critic: Path, source_folder: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (CriticOptions(starts=3), "critic.model is missing"),
        (CriticOptions(Path("x")), "with critic.starts above 1 or critic.push"),
        (CriticOptions(Path("x"), push=1.0, calls=5), "critic.calls is 5"),
        (CriticOptions(Path("x"), starts=2, until=5), "critic.until is 5"),
        (CriticOptions(Path("x"), starts=0), "critic.starts is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            options.check()
    arguments = ["generate", "--source", str(source_folder), "--tile-size", "64", "--out", str(tmp_path / "out")]
    arguments += ["--critic.starts", "2", "--critic.model"]
    assert command([*arguments, str(tmp_path / "nothing")]) == 2
    assert "nothing: no critic" in capsys.readouterr().err
    assert command([*arguments, str(critic), "--method", "recolour"]) == 2
    assert "which recolour does not" in capsys.readouterr().err
    other = tiny_model()
    other.first_stage.latent_mean += 1
    save_model(other, tmp_path / "other")
    with pytest.raises(ModelError, match="latents of another encoder"):
        Critic.load(critic).check_model(tmp_path / "other" / "first_stage", other.schedule, other.legend, critic)
    legend = Legend("two", (LegendClass(1, "a", (0, 0, 0)), LegendClass(2, "b", (9, 9, 9))))
    with pytest.raises(LegendError, match="the critic knows"):
        Critic.load(critic).check_model(tiny_model_folder / "first_stage", other.schedule, legend, critic)
    shutil.copytree(critic, tmp_path / "broken")
    (tmp_path / "broken" / "critic.json").write_text("{}")
    with pytest.raises(ModelError, match="not a critic of format"):
        Critic.load(tmp_path / "broken")
    assert latents_hash(tiny_model_folder / "first_stage") == Critic.load(critic).latents
    assert command(["check", str(critic)]) == 0
    assert "a network that reads noisy latents" in capsys.readouterr().out


def test_tiles_fit_the_depth() -> None:
    deep = Recipe(DataRecipe(source="x", tile_size=48), critic=CriticRecipe(channels=[8] * 4))
    with pytest.raises(ConfigError, match=r"data\.tile_size is 48; allowed: a multiple of 32, .*critic\.channels of 4"):
        deep.check("critic")
    replace(deep, data=replace(deep.data, tile_size=64)).check("critic")
