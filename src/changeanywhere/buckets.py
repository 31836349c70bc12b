"""Where results go that is no folder: ``s3://``, ``gs://``, ``az://`` and, for tests, ``memory://``, through obstore.

Objects are put whole, and ``put_new`` is a conditional put (``If-None-Match: *``), which the service decides. Obstore
repeats what fails (503, lost connections), but for conditional puts that time out, which are repeated here; of a put
whose answer was lost nobody can tell whose object is there, so the object itself is asked. Credentials are found by
obstore's own ways (environment, instance roles), and with boto3 installed by boto3's (profiles); an address that holds
any is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from changeanywhere.errors import ConfigError, OutputError
from changeanywhere.storage import LocalStore, Store, address_of, atomic_write, content_hash, file_hash

SCHEMES = ("s3", "gs", "az", "memory")
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AZURE_ENDPOINT", "AZURE_STORAGE_ENDPOINT")
"""Variables that name another service than the provider's own; one without TLS is taken as it is asked for."""
SPOOLED = 1 << 24
"""Bytes of an object that are kept in memory before a temporary file is used."""
TRIES = 6
LONGEST_REQUEST = 60.0
LONGEST_WAIT = 120.0
"""Seconds: of one request, and of one with all its repetitions."""
COPIES = 16
"""Objects that are fetched at once."""

_memory: dict[str, Any] = {}
"""Of ``memory://``, by bucket: they live as long as the process."""


@dataclass(frozen=True)
class Found:
    """An object of a listing; ``tag`` changes with its content."""

    name: str
    size: int
    tag: str


class BucketStore:
    """A :class:`Store` below an address. :class:`ConfigError` for one that cannot be reached by what is installed."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._bucket, self._prefix = _opened(self.address)

    def put(self, name: str, content: bytes) -> None:
        """See :class:`Store`."""
        import obstore

        with self._writing(name):
            obstore.put(self._bucket, self._key(name), content)

    def put_new(self, name: str, content: bytes) -> bool:
        """See :class:`Store`; ``content`` says who wrote it, since an answer may be lost on the way."""
        from obstore.exceptions import AlreadyExistsError

        try:
            with self._writing(name):
                self._put_new(name, content)
        except AlreadyExistsError:
            try:
                return self.get(name) == content  # a repeated put meets its own object
            except FileNotFoundError:  # gone again: whoever had it has let go
                return False
        return True

    def _put_new(self, name: str, content: bytes) -> None:
        """A conditional put that times out is not repeated by obstore, which cannot know whether it arrived."""
        import obstore
        from obstore.exceptions import GenericError

        until = time.monotonic() + LONGEST_WAIT
        for left in reversed(range(TRIES)):
            try:
                obstore.put(self._bucket, self._key(name), content, mode="create", use_multipart=False)
                return
            except GenericError:
                if not left or time.monotonic() >= until:
                    raise

    @contextmanager
    def create(self, name: str) -> Iterator[BinaryIO]:
        """See :class:`Store`."""
        import obstore

        with tempfile.SpooledTemporaryFile(SPOOLED) as spool:
            yield cast(BinaryIO, spool)
            spool.seek(0)
            with self._writing(name):
                obstore.put(self._bucket, self._key(name), cast(BinaryIO, spool))

    def get(self, name: str) -> bytes:
        """See :class:`Store`."""
        import obstore

        with self._reading(name):
            return bytes(obstore.get(self._bucket, self._key(name)).bytes())

    def open(self, name: str) -> BinaryIO:
        """See :class:`Store`."""
        import obstore

        spool = tempfile.SpooledTemporaryFile(SPOOLED)  # noqa: SIM115  the caller closes it
        try:
            with self._reading(name):
                for part in obstore.get(self._bucket, self._key(name)):
                    spool.write(part)
        except BaseException:
            spool.close()
            raise
        spool.seek(0)
        return cast(BinaryIO, spool)

    def exists(self, name: str) -> bool:
        """See :class:`Store`."""
        import obstore

        try:
            with self._reading(name):
                obstore.head(self._bucket, self._key(name))
        except FileNotFoundError:
            return False
        return True

    def found(self, folder: str = "") -> list[Found]:
        """:meth:`list` with sizes and tags."""
        import obstore

        top = self._key(folder) if folder else self._prefix
        cut = len(self._prefix) + 1 if self._prefix else 0
        seen = []
        with self._reading(folder):
            for page in obstore.list(self._bucket, prefix=top or None):
                for each in page:
                    tag = str(each.get("e_tag") or each["last_modified"])
                    seen.append(Found(str(each["path"])[cut:], int(each["size"]), tag))
        # Consoles put an empty object where a folder was made, whose name is listed without its slash.
        folders = {parent for each in seen for parent in map(str, PurePosixPath(each.name).parents)}
        return sorted((f for f in seen if f.name and not (f.size == 0 and f.name in folders)), key=lambda f: f.name)

    def list(self, folder: str = "") -> list[str]:
        """See :class:`Store`."""
        return [each.name for each in self.found(folder)]

    def delete(self, name: str) -> None:
        """See :class:`Store`."""
        import obstore

        try:
            with self._writing(name):
                obstore.delete(self._bucket, self._key(name))
        except FileNotFoundError:
            return

    def keep(self, names: Iterable[str]) -> None:
        """See :class:`Store`. What was put is kept: the service answers when it is."""

    def describe(self, name: str = "") -> str:
        """See :class:`Store`."""
        return f"{self.address}/{name}" if name else self.address

    def _key(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/"):
            raise OutputError(f"{self.address}: {name!r} is no name of an object in it")
        return "/".join((self._prefix, *parts) if self._prefix else parts)

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        from obstore.exceptions import AlreadyExistsError, BaseError

        try:
            yield
        except (AlreadyExistsError, FileNotFoundError):
            raise
        except (BaseError, OSError) as error:
            raise OutputError(
                f"{self.describe(name)}: cannot be written ({_reason(error)}); what is finished is kept"
            ) from error

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        from obstore.exceptions import BaseError

        try:
            yield
        except FileNotFoundError:
            raise FileNotFoundError(2, "no such object", self.describe(name)) from None
        except (BaseError, OSError) as error:
            raise OutputError(f"{self.describe(name)}: cannot be read ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """The end of what the library says: what failed, without its lists of requests."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "Debug source" not in line]
    return " ".join(lines[0].split())[:300] if lines else type(error).__name__


def _opened(address: str) -> tuple[Any, str]:
    """The bucket of an address, and what the names of its objects begin with."""
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        raise ConfigError(f"{address!r} has the scheme {parts.scheme!r}; allowed: {', '.join(SCHEMES)}, or a folder")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"an address of {parts.scheme}:// holds a name, password or query; allowed: {parts.scheme}://BUCKET/FOLDER "
            "(credentials come from the environment, as the service's own tools find them)"
        )
    if not parts.netloc or ".." in parts.path.split("/"):
        raise ConfigError(f"{address!r} names no bucket; allowed: {parts.scheme}://BUCKET/FOLDER")
    try:
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise ConfigError(
            f"{address!r} needs obstore, which is not installed; pip install 'changeanywhere[cloud]', or give a folder"
        ) from error
    prefix = parts.path.strip("/")
    if parts.scheme == "memory":
        return _memory.setdefault(parts.netloc, MemoryStore()), prefix
    retries: Any = {"max_retries": TRIES, "retry_timeout": timedelta(seconds=LONGEST_WAIT)}
    plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    options: Any = {"timeout": timedelta(seconds=LONGEST_REQUEST), "allow_http": plain}
    more: dict[str, Any] = _of_boto3() if parts.scheme == "s3" else {}
    try:
        opened = from_url(f"{parts.scheme}://{parts.netloc}", retry_config=retries, client_options=options, **more)
    except Exception as error:  # obstore has no one class for what is wrong with its settings
        raise ConfigError(f"{address!r} cannot be opened ({_reason(error)})") from error
    return opened, prefix


def _of_boto3() -> dict[str, Any]:
    """Credentials as boto3 finds them, where it is installed and the environment holds none."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    try:
        from boto3 import Session
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        return {}
    session = Session()
    return {"credential_provider": Boto3CredentialProvider(session)} if session.get_credentials() else {}


def store_at(place: Path | str) -> Store:
    """The store of an address or a folder."""
    address = address_of(place)
    return LocalStore(place) if address is None else BucketStore(address)


def local_copy(place: Path | str, verified: bool = False) -> Path:
    """A folder as it is; of an address, a copy in the cache, in which changed objects alone are fetched again.

    The cache is ``$CHANGEANYWHERE_CACHE``, else ``~/.cache/changeanywhere``; what is no longer there is removed from
    it. ``verified``: what lies in it is held to the hash of what was fetched, not to its size alone. Raises
    :class:`OutputError` where something cannot be read.
    """
    address = address_of(place)
    if address is None:
        return Path(place)
    store = BucketStore(address)
    copy = LocalStore(_cache_of(store.address))
    noted_in = copy.root.parents[1] / "objects.json"
    try:
        noted = json.loads(noted_in.read_bytes())
    except (OSError, ValueError):
        noted = {}
    found = {each.name: each for each in store.found() if not each.name.startswith("leases/")}
    if not found:
        raise OutputError(f"{store.address}: nothing is there")
    kept = {n: noted[n] for n, each in found.items() if _is_kept(copy, each, noted.get(n), verified)}
    fetched = _fetch(store, copy, [each for name, each in found.items() if name not in kept])
    for name in copy.list():
        if name not in found:
            copy.delete(name)
    atomic_write(noted_in, json.dumps(kept | fetched).encode())
    return copy.root


def listing_of(place: Path | str) -> str | None:
    """What lies at an address, as one hash over names, sizes and tags; None for a folder."""
    address = address_of(place)
    if address is None:
        return None
    lines = (f"{each.name} {each.size} {each.tag}" for each in BucketStore(address).found())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _is_kept(copy: LocalStore, found: Found, noted: Any, verified: bool) -> bool:
    """Whether the copy of an object is what was noted of it when it was fetched, and the object is still that one."""
    place = copy.root / found.name
    if not isinstance(noted, list) or len(noted) != 3 or noted[:2] != [found.size, found.tag]:
        return False
    if not copy.exists(found.name) or place.stat().st_size != found.size:
        return False
    return not verified or file_hash(place) == noted[2]


def _fetch(store: BucketStore, copy: LocalStore, objects: list[Found]) -> dict[str, list[int | str]]:
    """Copy objects; size, tag and hash by name."""
    from concurrent.futures import ThreadPoolExecutor

    def one(each: Found) -> list[int | str] | None:
        try:
            content = store.get(each.name)
        except FileNotFoundError:
            if each.size == 0:
                return None  # a folder without anything in it, see :meth:`BucketStore.found`
            raise
        copy.put(each.name, content)
        return [each.size, each.tag, content_hash(content)]

    with ThreadPoolExecutor(COPIES) as pool:
        made = zip((each.name for each in objects), pool.map(one, objects), strict=True)
        return {name: noted for name, noted in made if noted is not None}


def cache_folder() -> Path:
    """Where copies are kept; all of it can be deleted."""
    return Path(os.environ.get("CHANGEANYWHERE_CACHE") or Path.home() / ".cache" / "changeanywhere")


def _cache_of(address: str) -> Path:
    """Folder of an address in the cache; its last two parts keep their names, since sources are called by them."""
    return (cache_folder() / hashlib.sha256(address.encode()).hexdigest()[:16]).joinpath(
        *PurePosixPath(address).parts[-2:]
    )
