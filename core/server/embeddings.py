"""OpenAI's /v1/embeddings, where an embedding model is on this disk.

Knows the body and the answer. Knows nothing of encoders: it is given one when it is first needed,
or a sentence why not.
Always: a text that the model would see in part only is refused.
"""

import asyncio
import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from aiohttp import web

from ..errors import ModelError, ModelNotFoundError
from .answering import IGNORED
from .errors import BadRequest, parse_json
from .openapi import OBJECT, TEXT, described, many, shaped
from .paths import spelled
from .schemas import Record, either, listed, named, number, only, text

M = TypeVar("M")
M_co = TypeVar("M_co", covariant=True)
MOST_TEXTS = 2048  # as OpenAI's
BODY = Record(
    {
        "input": either(named, listed(named, least=1, most=MOST_TEXTS)),
        "model": text,
        "encoding_format": only("float", "base64"),
        "dimensions": number(int, 1, 1 << 20),
    },
    ["input"],
    {"user": text},
)


class EmbeddingModel(Protocol):
    """The part of an embedding model that this file needs."""

    width: int
    longest: int  # tokens of one text

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, none cut off."""
        ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, [N, width]."""
        ...


@dataclass(frozen=True, slots=True)
class Source(Generic[M_co]):
    """Where a model comes from."""

    name: str
    find: Callable[[], Path]  # raises ModelNotFoundError with the command that brings it
    read: Callable[[Path], M_co]  # raises ModelError


class OnDemand(Generic[M]):
    """A model that is read at the first question."""

    def __init__(self, source: Source[M] | None, missing: str) -> None:
        """`missing`: what is said where there is no source."""
        self.name = source.name if source else ""
        self._source, self._missing = source, missing
        self._found: M | None = None
        self._reading = asyncio.Lock()

    async def here(self) -> bool:
        """Is the model on this disk?"""
        try:
            return self._source is not None and bool(await asyncio.to_thread(self._source.find))
        except ModelError:
            return False

    async def get(self, asked: str | None, does: str) -> M:
        """The model, read by now.

        Args:
            asked: how the request names it.
            does: what it would have to do, for the sentence that refuses another's name.

        Raises:
            ModelNotFoundError: there is none, or none of this name; it says how to get one.
        """
        if asked not in (None, "default", self.name):
            raise ModelNotFoundError(f"{asked[:80]!r} {does} here; {self.name or 'no model'} does")
        if self._source is None:
            raise ModelNotFoundError(self._missing)
        async with self._reading:
            if self._found is None:
                self._found = await asyncio.to_thread(self._read, self._source)
            return self._found

    def _read(self, source: Source[M]) -> M:
        return source.read(source.find())


class Embeddings:
    """The handler, around a model that is read at the first question."""

    def __init__(self, source: Source[EmbeddingModel] | None) -> None:
        self.model = OnDemand(source, "this node was started without an embedding model")
        self.name = self.model.name
        self.here = self.model.here

    def routes(self) -> list[web.RouteDef]:
        """What the application mounts."""
        return [web.post(spelled("embeddings"), self.embed)]

    @described(shaped(object=TEXT, data=many(OBJECT), model=TEXT, usage=OBJECT), BODY)
    async def embed(self, request: web.Request) -> web.Response:
        """Vectors of texts."""
        written = parse_json(await request.read())
        body = BODY(written, "")
        request[IGNORED] = tuple(BODY.ignored(written))
        vectors, counts = await self.vectors(
            body["input"], body.get("model"), body.get("dimensions")
        )
        as_text = body.get("encoding_format") == "base64"
        data = [
            {
                "object": "embedding",
                "index": place,
                "embedding": packed(vector) if as_text else vector.tolist(),
            }
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
        return web.json_response(
            {"object": "list", "data": data, "model": self.name, "usage": usage}
        )

    async def vectors(
        self, given: str | Sequence[str], model: str | None, dimensions: int | None
    ) -> tuple[npt.NDArray[np.float32], list[int]]:
        """Unit vectors, [N, width], and the tokens of each text.

        Raises:
            ModelNotFoundError: there is no such model.
            BadRequest: a text is too long, or the vectors have not so many dimensions.
        """
        embedder = await self.model.get(model, "makes no embeddings")
        texts = [given] if isinstance(given, str) else list(given)
        if dimensions not in (None, embedder.width):
            raise BadRequest(
                f"dimensions is {dimensions}, this model's vectors have {embedder.width}",
                "dimensions",
            )
        if not texts:
            return np.zeros((0, embedder.width), np.float32), []
        counts = await asyncio.to_thread(embedder.count, texts)
        for place, count in enumerate(counts):
            if count > embedder.longest:
                where = "input" if isinstance(given, str) else f"input[{place}]"
                raise BadRequest(
                    f"{where} has {count} tokens, this model reads {embedder.longest}; split it",
                    where,
                )
        return await asyncio.to_thread(embedder.embed, texts), counts


def packed(vector: npt.NDArray[np.float32]) -> str:
    """Little-endian float32, as OpenAI's clients ask for them."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
