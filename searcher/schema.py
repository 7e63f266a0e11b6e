"""What clients send and get: the fields, and reading them from JSON or multipart without touching the disk."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from searcher.errors import Refused

MAX_QUESTION = 4000
"""Letters of a question; models read some dozen words."""

MAX_K = 100
MAX_WHY = 5
"""Documents explained in one request: each is encoded once more."""

MAX_COMMAS = MAX_QUESTION + 1000
"""In a JSON body, whose image has none. A body of a million tiny values would be a million complaints to collect."""

CHARSETS = ("utf-8", "utf8", "us-ascii")


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Asking(Sent):
    """A question, an image, or both."""

    question: str = Field("", max_length=MAX_QUESTION, description="may be empty when there is an image")
    image: bytes | None = Field(
        None,
        description="JPEG, PNG, WebP or GIF; base64 in JSON, a file in multipart",
        json_schema_extra={"contentEncoding": "base64"},
    )

    @field_validator("question")
    @classmethod
    def _is_text(cls, value: str) -> str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("holds half of a surrogate pair, which is no text") from None
        return value


class Search(Asking):
    k: int = Field(10, ge=1, le=MAX_K, description="how many passages")


class Explain(Asking):
    """The same query, and the documents to give reasons for."""

    documents: list[str] = Field(min_length=1, max_length=MAX_WHY, description="ids of passages")


class Upload(Sent):
    """The original demo's form."""

    file: bytes = Field(description="JPEG, PNG, WebP or GIF")
    searchText: str = Field("", max_length=MAX_QUESTION)


class Hit(BaseModel):
    rank: int
    id: str
    score: float
    title: str
    text: str


class Timings(BaseModel):
    """Milliseconds. decode: this image. queue: waiting. encode, search: of the call that answered ``batch`` queries."""

    decode_ms: float
    queue_ms: float
    encode_ms: float
    search_ms: float
    total_ms: float
    batch: int


class Found(BaseModel):
    results: list[Hit]
    timings: Timings


class OldHit(BaseModel):
    rank: int
    score: float
    text: str


class OldFound(BaseModel):
    results: list[OldHit]


class Reasons(BaseModel):
    """words, rows, picture, maps, passages, notes: see ``evaluation/explain.py``."""

    family: str
    question: str
    words: list[dict[str, Any]]
    rows: list[dict[str, Any]]
    picture: dict[str, Any] | None
    maps: dict[str, Any] | None
    passages: list[dict[str, Any]]
    notes: list[str]


class Health(BaseModel):
    status: Literal["ok"]
    waiting: int
    answered: int
    batches: int


class Example(BaseModel):
    """image: address of its picture, relative to this server; null without one."""

    question: str
    image: str | None


class Problem(BaseModel):
    detail: str


class InMemory(MultiPartParser):
    """Starlette's own writes files over 1 MB to disk. The size of the whole body is limited already."""

    spool_max_size = 1 << 40


async def read(request: Request, kind: type[Sent]) -> Any:
    """The request's body as a ``kind``: JSON or multipart, as its content type says."""
    sort = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if sort == "application/json" and kind is not Upload:
        sent = await request.body()
        if sent.count(b",") > MAX_COMMAS:
            raise Refused(422, f"body: it has more than {MAX_COMMAS} commas; send the fields of /openapi.json alone.")
        found = _checked(lambda body: kind.model_validate_json(body, strict=True), sent)
        if getattr(found, "image", None) is not None:
            found = found.model_copy(update={"image": _unpacked(found.image)})
        return found
    if sort == "multipart/form-data":
        return _checked(lambda body: kind.model_validate(body), await _form(request, kind))
    wanted = "multipart/form-data" if kind is Upload else "application/json or multipart/form-data"
    raise Refused(415, f"the content type is '{sort[:80]}'; send {wanted}.")


async def _form(request: Request, kind: type[Sent]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    charset = parse_options_header(request.headers["content-type"])[1].get(b"charset", b"utf-8").decode("latin-1")
    if charset.lower() not in CHARSETS:  # Python knows some that take minutes for a MB
        raise Refused(415, f"the charset is '{charset[:80]}'; send utf-8.")
    try:
        form = await InMemory(request.headers, request.stream(), max_files=1, max_fields=20).parse()
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                value = await value.read()
            elif name in ("image", "file"):
                raise Refused(422, f"{name}: it is text; send a file (with curl: -F {name}=@picture.jpg).")
            if name == "documents":
                out.setdefault(name, []).append(value)
            elif name in out:
                raise Refused(422, f"{name}: it is there twice; send it once.")
            else:
                out[name] = value
    except (MultiPartException, ValueError, LookupError) as error:
        raise Refused(400, f"the multipart body cannot be read ({str(error)[:120]}).") from None
    return out


def _checked(make, body: Any) -> Any:
    try:
        return make(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        status = 400 if first["type"] == "json_invalid" else 422
        raise Refused(status, f"{place}: {first['msg']}"[:300]) from None


def _unpacked(image: bytes) -> bytes:
    try:
        return base64.b64decode(image, validate=True)
    except binascii.Error as error:
        raise Refused(422, f"image: it is not base64 ({error}).") from None


def body_of(kind: type[Sent]) -> dict[str, Any]:
    """The request body for the OpenAPI document: what ``read`` takes."""
    inline = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    form = {**inline, "properties": {**inline["properties"]}}
    for name in ("image", "file"):
        if name in form["properties"]:
            form["properties"][name] = {"type": "string", "format": "binary", "description": "the file"}
    content = {"multipart/form-data": {"schema": form}}
    if kind is not Upload:
        content = {"application/json": {"schema": inline}, **content}
    return {"requestBody": {"required": True, "content": content}}
