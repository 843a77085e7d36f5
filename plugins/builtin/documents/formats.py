"""Documents into blocks of text that know where they stood.

Knows file formats, through libraries that read them: pypdf, mammoth (docx), openpyxl, markdown-it,
and Python's own for HTML, CSV and the XML of slides and of OpenDocument. Knows nothing of who asks
or of what becomes of the text.
Always: what a file is called and what its bytes are must agree; positions count from one.

    page   PDF: the page; slides: the slide; workbooks: the sheet; else 0
    line   PDF: of the page's text; text, Markdown, HTML, CSV: of the file; docx, odt, slides: the
           paragraph; workbooks: the row
"""

import codecs
import csv
import io
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from operator import itemgetter
from xml.etree import ElementTree

UNPACKED_BYTES = 512 << 20  # of an office file; a zip that unpacks to more is not opened
MAX_CELLS = 2_000_000  # of a workbook
OFFICE = {
    "docx": "word/document.xml",
    "odt": "content.xml",
    "pptx": "ppt/presentation.xml",
    "xlsx": "xl/workbook.xml",
}
EDGE, MIN_PAGES = 2, 3  # lines at a page's edge that may be its header, and pages that show it
NUMBER = re.compile(r"\d{1,9}")
DRAWING = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
SLIDES = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
OPEN = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
ODT, TEXT, TABLE = OPEN % "office", OPEN % "text", OPEN % "table"
RELATED = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
SIGNS = {
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an office file",
    b"\xd0\xcf\x11\xe0": "an office file of before 2007",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "a gzip archive",
    b"\x7fELF": "a program",
    b"MZ": "a program",
}


class Unreadable(Exception):
    """A document that cannot be read; the sentence is for its owner."""


@dataclass(frozen=True, slots=True)
class Block:
    """A paragraph, a row or a heading, and where it stood."""

    text: str
    page: int
    line: int
    last_line: int
    level: int = 0  # of a heading, 1 to 6; 0: no heading


def read(name: str, data: bytes) -> Iterator[Block]:
    """Blocks of one document, in reading order.

    Raises:
        Unreadable: of a format that is not read here, damaged, locked, too large when unpacked, or
        not what its name says.
    """
    kind = name.rpartition(".")[2].lower()
    kind = {"markdown": "md", "htm": "html", "xhtml": "html", "tsv": "csv", "text": "txt"}.get(
        kind, kind
    )
    if kind not in FORMATS:
        raise Unreadable(
            f"named .{kind[:20]}, which is not read here; "
            f"save it as one of: {', '.join(sorted(FORMATS))}"
        )
    check(kind, data)
    try:
        yield from FORMATS[kind](data)
    except Unreadable:
        raise
    except MemoryError:
        raise Unreadable("needs more memory than a parser is given; split it") from None
    except Exception as error:
        raise Unreadable(
            f"damaged, or no {kind} as others write it ({type(error).__name__}); open it in its "
            f"own program and save it anew"
        ) from error


def check(kind: str, data: bytes) -> None:
    """Raises: Unreadable: the bytes are not what the name says."""
    found = next((words for sign, words in SIGNS.items() if data.startswith(sign)), "")
    if not data and (kind == "pdf" or kind in OFFICE):
        raise Unreadable("empty: not one byte is in it; save or download it anew")
    if kind == "pdf":
        if b"%PDF-" not in data[:1024]:
            raise Unreadable(f"named .pdf, but its bytes are {found or 'no PDF'}; rename it")
    elif kind in OFFICE:
        parts = entries(kind, data, found)
        if OFFICE[kind] not in parts:
            truly = next((other for other, part in OFFICE.items() if part in parts), "")
            words = f"a .{truly}" if truly else "a ZIP archive of something else"
            raise Unreadable(f"named .{kind}, but its bytes are {words}; rename it")
    elif found or (b"\0" in data[:4096] and not utf16(data)):
        raise Unreadable(f"named .{kind}, but its bytes are {found or 'no text'}; rename it")


def entries(kind: str, data: bytes, found: str) -> set[str]:
    """Names in an office file. Raises: Unreadable: no such file, or it unpacks to too much."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > UNPACKED_BYTES:
                raise Unreadable(
                    f"unpacks to {unpacked >> 20} MB, at most {UNPACKED_BYTES >> 20} are read; "
                    f"split it"
                )
            return set(archive.namelist())
    except zipfile.BadZipFile:
        raise Unreadable(
            f"named .{kind}, but its bytes are {found or f'no .{kind}'}, or damaged; rename it, or "
            f"save it anew"
        ) from None


def utf16(data: bytes) -> bool:
    """Does it begin as text of 16-bit characters does?"""
    return data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def decoded(data: bytes) -> str:
    """Text: UTF-8, UTF-16 with its mark, else Windows' Western characters."""
    if utf16(data):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def text(data: bytes) -> Iterator[Block]:
    """Plain text: a block is what stands between empty lines."""
    yield from paragraphs(decoded(data).splitlines(), 1, 0)


def paragraphs(lines: list[str], first: int, page: int) -> Iterator[Block]:
    """Runs of lines that are not empty; `first` is the number of the first line."""
    begun: list[str] = []
    for number, line in enumerate([*lines, ""], first):
        if line.strip():
            begun.append(line.rstrip())
        elif begun:
            yield Block("\n".join(begun), page, number - len(begun), number - 1)
            begun = []


def markdown(data: bytes) -> Iterator[Block]:
    """Markdown: headings, and the source of every other block."""
    from markdown_it import MarkdownIt

    source = decoded(data)
    lines = source.split("\n")
    tokens = MarkdownIt("commonmark").enable("table").parse(source)
    for place, token in enumerate(tokens):
        if token.level or token.map is None or token.nesting < 0:
            continue
        first, end = token.map
        if token.type == "heading_open":
            yield Block(tokens[place + 1].content, 0, first + 1, end, int(token.tag[1:]))
        else:
            yield from paragraphs(lines[first:end], first + 1, 0)


class Page(HTMLParser):
    """HTML: text by blocks. What is no text of the page (scripts, styles) is left out."""

    HIDDEN = frozenset(("script", "style", "template", "noscript", "svg"))
    BREAKS = frozenset(
        re.findall(
            r"\w+",
            "address article aside blockquote body br caption dd details dialog div dl dt fieldset "
            "figcaption figure footer form h1 h2 h3 h4 h5 h6 header hr html li main nav ol option "
            "p pre section summary table tbody tfoot thead title tr ul",
        )
    )

    def __init__(self, *, count: bool = False) -> None:
        """`count`: number blocks instead of lines of the source."""
        super().__init__(convert_charrefs=True)
        self.blocks: list[Block] = []
        self._count = count
        self._held: list[str] = []
        self._first = 1
        self._level = 0
        self._titled = False
        self._hidden = 0

    def handle_starttag(self, tag: str, _attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self._hidden += 1
        elif tag in self.BREAKS:
            self.end()
            if tag == "title":  # it stands above all headings
                self._level, self._titled = 1, True
            elif re.fullmatch("h[1-6]", tag):
                self._level = min(6, int(tag[1]) + self._titled)
        elif tag in ("td", "th") and self._held:
            self._held.append(" | ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HIDDEN:
            self._hidden = max(0, self._hidden - 1)
        elif tag in self.BREAKS:
            self.end()

    def handle_data(self, data: str) -> None:
        if self._hidden or not (data.strip() or self._held):
            return
        if not self._held:
            led = data[: len(data) - len(data.lstrip())]
            self._first = self.getpos()[0] + led.count("\n")
        self._held.append(data)

    def end(self) -> None:
        """The block that was begun is whole."""
        words = " ".join("".join(self._held).split())
        if words:
            number = len(self.blocks) + 1
            first, last = (number, number) if self._count else (self._first, self.getpos()[0])
            self.blocks.append(Block(words, 0, first, max(first, last), self._level))
        self._held, self._level = [], 0


def html(data: bytes) -> Iterator[Block]:
    """HTML, however it is written."""
    page = Page()
    page.feed(decoded(data))
    page.close()
    page.end()
    yield from page.blocks


def pdf(data: bytes) -> Iterator[Block]:
    """PDF: the text of each page, line by line; a page that is a picture has none, and headers and
    footers that repeat are told once.
    """
    from pypdf import PdfReader
    from pypdf.errors import DependencyError, PyPdfError

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise Unreadable("locked with a password; unlock it and save it anew")
        pages = list(reader.pages)
    except DependencyError:
        raise Unreadable("locked in a way that is not read here; unlock it and save it") from None
    except PyPdfError as error:
        raise Unreadable(f"a damaged PDF ({error}); open it and save it anew"[:300]) from error
    texts = [
        [
            Block(words.strip(), number, line, line)
            for line, words in enumerate((page.extract_text() or "").splitlines(), 1)
            if words.strip()
        ]
        for number, page in enumerate(pages, 1)
    ]
    if not any(texts):
        raise Unreadable(
            f"{len(pages)} pages without any text, pictures of pages perhaps; run a text "
            f"recognition over it first"
        )
    repeated = running_lines(texts)
    for page in texts:
        yield from [block for block in page if block not in repeated] or page


def running_lines(pages: list[list[Block]]) -> set[Block]:
    """Headers and footers of the pages but for each one's first: lines at a page's edges that most
    pages have, with the same numbers in them or such as count the pages. A sum that is carried
    forward is none.
    """
    alike: dict[str, dict[int, Block]] = {}  # text without digits → page → its line
    for page in pages:
        for block in (*page[:EDGE], *page[-EDGE:]):
            alike.setdefault(NUMBER.sub("0", block.text), {})[block.page] = block
    found: set[Block] = set()
    for lines in alike.values():
        most = max(MIN_PAGES, len(pages) // 2 + 1)
        rows = {page: [int(one) for one in NUMBER.findall(b.text)] for page, b in lines.items()}
        for place in range(len(next(iter(rows.values())))):
            same = Counter((one[place], 0) for one in rows.values())
            counting = Counter((one[place] - page, 1) for page, one in rows.items())
            (start, step), _ = max(same.most_common(1) + counting.most_common(1), key=itemgetter(1))
            rows = {page: one for page, one in rows.items() if one[place] - step * page == start}
        if len(rows) >= most:
            found |= {lines[page] for page in sorted(rows)[1:]}
    return found


def docx(data: bytes) -> Iterator[Block]:
    """Word: paragraphs, numbered, with their heading styles."""
    import mammoth

    page = Page(count=True)
    page.feed(
        mammoth.convert_to_html(
            io.BytesIO(data), convert_image=mammoth.images.img_element(lambda _image: {})
        ).value
    )
    page.close()
    page.end()
    yield from page.blocks


def pptx(data: bytes) -> Iterator[Block]:
    """Slides, in the order they are shown; a slide's title is a heading.

    Source: ECMA-376, part 1, 13.3 (presentation parts) and 21.1.2 (text).
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        targets = {
            one.get("Id"): one.get("Target", "")
            for one in ElementTree.fromstring(archive.read("ppt/_rels/presentation.xml.rels"))
        }
        shown = ElementTree.fromstring(archive.read("ppt/presentation.xml"))
        for number, slide in enumerate(shown.iter(f"{SLIDES}sldId"), 1):
            target = targets.get(slide.get(f"{RELATED}id"), "").lstrip("/")
            part = target if target.startswith("ppt/") else f"ppt/{target}"
            yield from of_slide(ElementTree.fromstring(archive.read(part)), number)


def of_slide(slide: ElementTree.Element, number: int) -> Iterator[Block]:
    """The paragraphs of one slide."""
    line = 0
    for shape in slide.iter():
        if shape.tag not in (f"{SLIDES}sp", f"{SLIDES}graphicFrame"):
            continue
        kind = shape.find(f".//{SLIDES}ph")
        title = kind is not None and kind.get("type") in ("title", "ctrTitle")
        for paragraph in shape.iter(f"{DRAWING}p"):
            words = "".join(run.text or "" for run in paragraph.iter(f"{DRAWING}t")).strip()
            if words:
                line += 1
                yield Block(words, number, line, line, 1 if title else 0)


def odt(data: bytes) -> Iterator[Block]:
    """OpenDocument texts: headings, paragraphs and rows of tables, numbered; without what was
    struck out and without remarks.

    Source: OpenDocument 1.3, part 3, 5 (text) and 9 (tables).
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        body = ElementTree.fromstring(archive.read("content.xml")).find(f".//{ODT}text")
    waiting, line = list(reversed(body)) if body is not None else [], 0
    while waiting:
        part = waiting.pop()
        if part.tag == f"{TABLE}table-row":
            words = " | ".join(filter(None, map(of_odt, part)))
        elif part.tag in (f"{TEXT}h", f"{TEXT}p"):
            words = of_odt(part)
        else:
            if part.tag != f"{TEXT}tracked-changes":
                waiting += reversed(part)
            continue
        if words:
            line += 1
            level = part.get(f"{TEXT}outline-level", "1") if part.tag == f"{TEXT}h" else "0"
            yield Block(words, 0, line, line, min(6, int(level)))


def of_odt(part: ElementTree.Element) -> str:
    """The words of a part."""
    found, waiting = list[str](), list[ElementTree.Element | str]([part])
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            found.append(one)
        elif one.tag in (f"{TEXT}s", f"{TEXT}tab", f"{TEXT}line-break"):
            found.append(" ")
        elif one.tag != f"{ODT}annotation":
            inner = [(child, child.tail or "") for child in reversed(one)]
            waiting += [each for child, tail in inner for each in (tail, child)]
            between = " " if one.tag == f"{TEXT}p" else ""  # paragraphs of one cell
            found.append(between + (one.text or ""))
    return " ".join("".join(found).split())


def xlsx(data: bytes) -> Iterator[Block]:
    """Workbooks: a row is a block, its cells under the names of the first row."""
    from openpyxl import load_workbook

    book = load_workbook(io.BytesIO(data), read_only=True, data_only=True)
    cells = 0
    for number, sheet in enumerate(book.worksheets, 1):
        yield Block(sheet.title, number, 1, 1, 1)
        names: list[str] = []
        for row, values in enumerate(sheet.iter_rows(values_only=True), 1):
            words = ["" if value is None else str(value).strip() for value in values]
            cells += len(words)
            if cells > MAX_CELLS:
                raise Unreadable(f"more than {MAX_CELLS} cells; split the workbook")
            if any(words):
                yield from of_row(words, names, number, row, row)
                names = names or words


def comma(data: bytes) -> Iterator[Block]:
    """CSV: a row is a block, its cells under the names of the first row."""
    source = decoded(data)
    try:
        dialect: type[csv.Dialect] | csv.Dialect = csv.Sniffer().sniff(source[:8192], ",;\t|")
    except csv.Error:
        dialect = csv.excel
    csv.field_size_limit(1 << 20)
    reader = csv.reader(io.StringIO(source, newline=""), dialect)
    names: list[str] = []
    before = 0
    for values in reader:
        words = [value.strip() for value in values]
        if any(words):
            yield from of_row(words, names, 0, before + 1, reader.line_num)
            names = names or words
        before = reader.line_num


def of_row(
    words: list[str], names: list[str], page: int, line: int, last_line: int
) -> Iterator[Block]:
    """A row as a sentence; the first one, of names, as it is."""
    told = [
        f"{names[place]}: {word}" if place < len(names) and names[place] else word
        for place, word in enumerate(words)
        if word
    ]
    yield Block("; ".join(told), page, line, last_line)


FORMATS: dict[str, Callable[[bytes], Iterator[Block]]] = {
    "csv": comma,
    "docx": docx,
    "html": html,
    "md": markdown,
    "odt": odt,
    "pdf": pdf,
    "pptx": pptx,
    "txt": text,
    "xlsx": xlsx,
}
