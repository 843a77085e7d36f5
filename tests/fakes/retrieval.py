"""A parser without a sandbox and an embedder without a model, and documents to feed them."""

import hashlib
import io
import re
import zipfile
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from quietchoir.core.errors import DocumentError
from quietchoir.core.models.embedding.folder import Role
from quietchoir.core.retrieval.chunking import TextBlock

WIDTH = 64


class LineParser:
    """Reads text: a line is a block, one that begins with "# " a heading."""

    suffixes = frozenset((".txt",))
    max_bytes = 1 << 20

    def __init__(self) -> None:
        self.parsed: list[str] = []
        self.late = frozenset[str]()  # files at which it runs into its deadline

    def parse(self, name: str, data: bytes) -> list[TextBlock]:
        self.parsed.append(name)
        if name in self.late:
            raise DocumentError(f"{name}: the parser gave up (no answer in time); split it")
        if b"\0" in data:
            raise DocumentError(f"{name}: named .txt, but its bytes are no text; rename it")
        return [
            TextBlock(line.removeprefix("# "), 0, number, number, line.startswith("# "))
            for number, line in enumerate(data.decode().splitlines(), 1)
            if line.strip()
        ]


class WordEmbedder:
    """Texts that share words lie near each other; each word's direction is drawn by `identity`."""

    def __init__(self, identity: str = "words 1") -> None:
        self.identity = identity
        self.embedded: list[str] = []
        self.roles: list[Role] = []

    def embed(self, texts: Sequence[str], role: Role = "") -> npt.NDArray[np.float32]:
        self.embedded += texts
        self.roles += [role] * len(texts)
        words = [re.findall(r"\w+", text.lower()) or [""] for text in texts]
        rows = [sum(map(self._direction, each)) for each in words]
        vectors = np.array(rows, np.float32).reshape(len(texts), WIDTH)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def _direction(self, word: str) -> npt.NDArray[np.float32]:
        seed = hashlib.sha256(f"{self.identity} {word}".encode()).digest()[:8]
        rng = np.random.default_rng(int.from_bytes(seed, "big"))
        return rng.standard_normal(WIDTH).astype(np.float32)


def zipped(parts: dict[str, str]) -> bytes:
    """An office file of these parts."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return packed.getvalue()


W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
A = 'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main"'
P = 'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main"'
R = 'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships"'
RELS = "http://schemas.openxmlformats.org/package/2006/relationships"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"


def docx(heading: str, *paragraphs: str) -> bytes:
    """A Word file: a heading, then paragraphs."""
    styled = (
        f'<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{heading}</w:t></w:r></w:p>'
    )
    body = "".join(f"<w:p><w:r><w:t>{text}</w:t></w:r></w:p>" for text in paragraphs)
    style = (
        f'<w:styles {W}><w:style w:type="paragraph" w:styleId="Heading1">'
        '<w:name w:val="heading 1"/></w:style></w:styles>'
    )
    types = (
        '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/></Types>'
    )
    relation = f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>'
    styles = f'<Relationship Id="r1" Type="{OFFICE}/styles" Target="styles.xml"/>'
    return zipped(
        {
            "[Content_Types].xml": types,
            "_rels/.rels": f'<Relationships xmlns="{RELS}">{relation}</Relationships>',
            "word/_rels/document.xml.rels": f'<Relationships xmlns="{RELS}">{styles}'
            "</Relationships>",
            "word/styles.xml": style,
            "word/document.xml": f"<w:document {W}><w:body>{styled}{body}</w:body></w:document>",
        }
    )


def pptx(*slides: tuple[str, str]) -> bytes:
    """Slides of a title and a line each; the last file is shown first."""
    parts, listed, related = {}, "", ""
    for number, (title, line) in enumerate(slides, 1):
        file = len(slides) + 1 - number
        shapes = (
            '<p:sp><p:nvSpPr><p:nvPr><p:ph type="title"/></p:nvPr></p:nvSpPr><p:txBody><a:p><a:r>'
            f"<a:t>{title}</a:t></a:r></a:p></p:txBody></p:sp>"
            f"<p:sp><p:txBody><a:p><a:r><a:t>{line}</a:t></a:r></a:p></p:txBody></p:sp>"
        )
        parts[f"ppt/slides/slide{file}.xml"] = f"<p:sld {P} {A}><p:cSld>{shapes}</p:cSld></p:sld>"
        listed += f'<p:sldId id="{255 + number}" r:id="rId{number}"/>'
        related += f'<Relationship Id="rId{number}" Type="s" Target="slides/slide{file}.xml"/>'
    parts["ppt/presentation.xml"] = (
        f"<p:presentation {P} {R}><p:sldIdLst>{listed}</p:sldIdLst></p:presentation>"
    )
    parts["ppt/_rels/presentation.xml.rels"] = (
        f'<Relationships xmlns="{RELS}">{related}</Relationships>'
    )
    return zipped(parts)


def pdf(*pages: Sequence[str]) -> bytes:
    """A PDF whose pages hold these lines."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", ""]
    kids = []
    for lines in pages:
        shown = "".join(f"({line}) Tj 0 -14 Td " for line in lines)
        content = f"BT /F1 12 Tf 72 720 Td {shown}ET"
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
        objects.append(
            "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] "
            f"/Contents {len(objects)} 0 R /Resources << /Font << /F1 << /Type /Font "
            "/Subtype /Type1 /BaseFont /Helvetica >> >> >> >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    out, places = b"%PDF-1.4\n", []
    for number, text in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{text}\nendobj\n".encode()
    start = len(out)
    out += f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n".encode()
    out += b"".join(f"{place:010} 00000 n \n".encode() for place in places)
    trailer = f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF\n"
    return out + trailer.encode()
