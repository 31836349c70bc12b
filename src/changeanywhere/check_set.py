"""The part of ``check`` that looks at what ``generate`` and ``simulate`` made, from the job down to the last image.

job ← plan ← plan of a shard ← its marker ← images and masks; markers ← lists and metadata. Each file is held to its own
seal, and to the one that it names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from changeanywhere.check_data import describe_pairs
from changeanywhere.documents import DocumentError, parse_json
from changeanywhere.errors import OutputError, PairsError
from changeanywhere.generation.dataset import check_held
from changeanywhere.generation.job import FIRST_EDITION, load_job
from changeanywhere.generation.plan import PlanSummary, ShardPlan, load_shard, load_summary
from changeanywhere.generation.shard import marker_name
from changeanywhere.pairs.containers import PLACE
from changeanywhere.pairs.names import CHECKSUMS, FINAL_FILES
from changeanywhere.pairs.record import ALL_FOLDERS
from changeanywhere.regular import read_regular
from changeanywhere.seals import unsealed
from changeanywhere.storage import LocalStore, file_hash

AGAIN = "and the same command makes it again"


def describe_set(folder: Path, preview: Path | None = None, max_megapixels: float | None = None) -> str:
    """A few lines on a set; :class:`PairsError` or :class:`OutputError` naming the first file that is damaged."""
    store = LocalStore(folder)
    if store.exists(FIRST_EDITION):
        return _of_first_edition(folder, preview, max_megapixels)
    job, plan = load_job(store), load_summary(store)
    if plan is None or job is None:
        raise PairsError(f"{folder}: no plan/plan.json; its plan was not finished or was deleted: generate again")
    shards = [load_shard(store, number, plan) for number in range(plan.num_shards)]
    planned = sum(len(shard.pairs) for shard in shards)
    if planned != plan.num_pairs:
        raise OutputError(f"{folder}/plan/plan.json: says {plan.num_pairs} pairs, the plans of its shards {planned}")
    files: set[str] = set()
    keys: list[str] = []
    done = 0
    for shard in shards:
        marker = _marker(store, shard)
        if marker is not None:
            done += 1
            files |= marker["files"].keys()
            keys += _keys(store, shard, marker, job.finishing.filter.drops)
            _check_files(folder, shard.number, marker["files"])
    last = "report.html" if job.painter else "annotations.json"
    was_finished = store.exists(last) or store.exists(CHECKSUMS)
    if done < plan.num_shards or not was_finished:
        return f"{folder}: an unfinished dataset, {done} of {plan.num_shards} shards\nnext: the same command again"
    _refuse_strangers(folder, files)
    for name in FINAL_FILES if job.painter else ("events.jsonl", "legend.json"):
        if not store.exists(name):
            raise PairsError(f"{folder / name}: missing; the same generate command makes it again")
    verified = _check_whole(store, plan, keys, "metadata.jsonl" if job.painter else "events.jsonl")
    if not job.painter:
        return f"{folder}: masks of {len(keys)} change events (simulate), without images; {verified}"
    return f"{folder}: a generated dataset; {verified}\n" + describe_pairs(folder, preview, max_megapixels)


def _marker(store: LocalStore, shard: ShardPlan) -> dict[str, Any] | None:
    """Of a shard; None if it has none."""
    name = marker_name(shard.number)
    if not store.exists(name):
        return None
    damaged = f"{store.describe(name)}: damaged; delete it, {AGAIN.replace('it again', 'its shard again')}"
    try:
        content, _ = unsealed(store.get(name))
    except (OSError, ValueError) as error:
        raise PairsError(damaged) from error
    content = {"files": {}, "records": None} | content
    if not isinstance(content["files"], dict) or not isinstance(content["records"], list):
        raise PairsError(damaged)
    if shard.seal and content.get("plan") != shard.seal:
        raise PairsError(f"{store.describe(name)}: of another plan; delete it, {AGAIN.replace('it', 'its shard', 1)}")
    return content


def _keys(store: LocalStore, shard: ShardPlan, marker: Mapping[str, Any], may_drop: bool) -> list[str]:
    """Of the pairs in a marker: those of the plan, but for what a filter left out."""
    name = store.describe(marker_name(shard.number))
    try:
        keys = [str(record["key"]) for record in marker["records"]]
    except (KeyError, TypeError) as error:
        raise PairsError(f"{name}: damaged; delete it, {AGAIN}") from error
    planned = {pair.key for pair in shard.pairs}
    if len(set(keys)) < len(keys) or not set(keys) <= planned:
        raise PairsError(f"{name}: holds pairs that its plan has not; delete it, {AGAIN}")
    absent = sorted(planned - set(keys))
    if absent and not may_drop:
        raise PairsError(f"{name}: {absent[0]} is missing, and no filter dropped it; delete it, {AGAIN}")
    return keys


def _check_files(folder: Path, number: int, files: Mapping[str, str]) -> None:
    then = f"delete {folder / marker_name(number)}, {AGAIN}"
    for name, digest in files.items():
        if not (folder / name).is_file():
            raise PairsError(f"{folder / name}: missing; {then}")
        if file_hash(folder / name) != digest:
            raise PairsError(f"{folder / name}: not the bytes that were written; {then}")


def _refuse_strangers(folder: Path, files: set[str]) -> None:
    """Images that no shard wrote would be read as pairs."""
    for name in (*ALL_FOLDERS, PLACE):
        for path in sorted((folder / name).glob("*")):
            if not path.name.startswith(".") and f"{name}/{path.name}" not in files:
                raise PairsError(f"{path}: no shard of this set wrote it; move it elsewhere")


def _check_whole(store: LocalStore, plan: PlanSummary, keys: list[str], records: str) -> str:
    """Lists and metadata; what may be said of the set."""
    found = sorted(_keys_of(store, records))
    if found != sorted(keys):
        odd = sorted(set(found) ^ set(keys))
        what = f"{odd[0]} is {'not in it' if odd[0] in keys else 'of no shard'}" if odd else "names a pair twice"
        raise PairsError(f"{store.describe(records)}: {what}; delete {store.describe(CHECKSUMS)} and it, {AGAIN}")
    if not store.exists(CHECKSUMS):
        return "every image and mask is as it was written; lists and metadata have no checksums (an earlier edition's)"
    try:
        check_held(store, plan)
    except (DocumentError, OSError) as error:
        raise PairsError(f"{store.describe(CHECKSUMS)}: {error}; delete it, {AGAIN}") from error
    return "every image and mask is as it was written"


def _keys_of(store: LocalStore, name: str) -> Iterator[str]:
    with store.open(name) as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield str(parse_json(line)["key"])
            except (ValueError, KeyError, TypeError) as error:
                raise PairsError(
                    f"{store.describe(name)}: line {number} is damaged; delete {store.describe(CHECKSUMS)}, {AGAIN}"
                ) from error


def _of_first_edition(folder: Path, preview: Path | None, max_megapixels: float | None) -> str:
    """Its plan was one file, and nothing had a seal."""
    planned = list(_objects(folder / "plan" / "pairs.jsonl"))
    try:
        num_shards = len({int(pair["shard"]) for pair in planned})
    except (KeyError, TypeError, ValueError) as error:
        raise PairsError(
            f"{folder}/plan/pairs.jsonl: damaged ({type(error).__name__}); generate the set anew"
        ) from error
    if (folder / "events.jsonl").is_file():
        return f"{folder}: masks of change events (simulate), without images"
    markers = sorted((folder / "shards").glob("*.json"))
    for marker in markers:
        (content,) = list(_objects(marker)) or [{}]
        files = content.get("files")
        if not isinstance(files, dict):
            raise PairsError(f"{marker}: damaged; generate the set anew")
        _check_files(folder, int(marker.stem) if marker.stem.isdigit() else 0, files)
    if len(markers) < num_shards or not (folder / "metadata.jsonl").is_file():
        return f"{folder}: an unfinished dataset of changeanywhere 0.1, {len(markers)} of {num_shards} shards"
    return f"{folder}: a generated dataset; every image and mask is as it was written\n" + describe_pairs(
        folder, preview, max_megapixels
    )


def _objects(file: Path) -> Iterator[dict[str, Any]]:
    """JSON objects, a line each."""
    try:
        for line in read_regular(file).decode().splitlines():
            content = parse_json(line)
            if not isinstance(content, dict):
                raise ValueError("not an object")
            yield content
    except (OSError, ValueError) as error:
        raise PairsError(f"{file}: damaged ({' '.join(str(error).split())}); generate the set anew") from error
