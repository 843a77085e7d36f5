"""Documents through the real sandbox: each format, with its positions; and what is no document."""

import io
from collections.abc import AsyncIterator
from pathlib import Path

import openpyxl
import pypdf
import pytest
import pytest_asyncio

from quietchoir.core.errors import DocumentError
from quietchoir.core.retrieval.chunking import TextBlock
from quietchoir.plugins import documents
from quietchoir.plugins.builtin.documents import formats
from quietchoir.plugins.documents import DocumentParser
from quietchoir.plugins.sandbox.probe import SandboxReport
from quietchoir.tests.fakes.retrieval import docx, pdf, pptx, zipped

# nine lines that unfold to a billion words
ENTITIES = (
    "<!DOCTYPE x [<!ENTITY e0 'words'>"
    + "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
    + "]><x>&e9;</x>"
)


@pytest_asyncio.fixture
async def parser(
    sandbox: SandboxReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[DocumentParser]:
    monkeypatch.setenv("QUIETCHOIR_HOME", str(tmp_path / "home"))
    found = DocumentParser()
    yield found
    await found.close()


def xlsx() -> bytes:
    book, packed = openpyxl.Workbook(), io.BytesIO()
    book.active.title = "Costs"
    book.active.append(["item", "euro"])
    book.active.append(["milk", 1.5])
    book.create_sheet("Empty")
    book.save(packed)
    return packed.getvalue()


def odt() -> bytes:
    """With a sentence that was struck out, and a remark."""
    open_, kinds = "urn:oasis:names:tc:opendocument:xmlns", ("office", "text", "table")
    names = " ".join(f'xmlns:{kind}="{open_}:{kind}:1.0"' for kind in kinds)
    cells = "".join(
        f"<table:table-cell><text:p>{words}</text:p></table:table-cell>"
        for words in ("milk", "1.50<text:s/>euro")
    )
    return zipped(
        {
            "mimetype": "application/vnd.oasis.opendocument.text",
            "content.xml": f"<office:document-content {names}><office:body><office:text>"
            "<text:tracked-changes><text:p>struck out</text:p></text:tracked-changes>"
            '<text:h text:outline-level="2">Lease</text:h>'
            "<text:p>The <text:span>rent<office:annotation><text:p>why?</text:p>"
            "</office:annotation></text:span> is<text:s/>due.</text:p>"
            f"<table:table><table:table-row>{cells}</table:table-row></table:table>"
            "<text:list><text:list-item><text:p>in a list</text:p></text:list-item></text:list>"
            "</office:text></office:body></office:document-content>",
        }
    )


async def test_every_format_is_read_with_its_pages_lines_and_headings(parser):
    async def read(name: str, data: bytes) -> list[TextBlock]:
        return await parser.parse(name, data)

    assert await read("a.txt", b"one\ntwo\n\nthree") == [
        TextBlock("one\ntwo", 0, 1, 2),
        TextBlock("three", 0, 4, 4),
    ]
    assert await read("a.md", b"# Top\n\ntext\nmore\n\n## Below\n\n- item\n") == [
        TextBlock("Top", 0, 1, 1, 1),
        TextBlock("text\nmore", 0, 3, 4),
        TextBlock("Below", 0, 6, 6, 2),
        TextBlock("- item", 0, 8, 8),
    ]
    page = b"<title>T</title>\n<style>p{}</style>\n<h2>Head</h2>\n<p>a <b>bold</b>\nword</p>"
    assert await read("a.html", page + b"<script>x()</script><tr><td>1</td><td>2</td></tr>") == [
        TextBlock("T", 0, 1, 1, 1),  # above the page's first heading, which is no second one beside
        TextBlock("Head", 0, 3, 3, 3),
        TextBlock("a bold word", 0, 4, 5),
        TextBlock("1 | 2", 0, 5, 5),
    ]
    assert await read("a.csv", b"name;age\nAnn;3\n") == [
        TextBlock("name; age", 0, 1, 1),
        TextBlock("name: Ann; age: 3", 0, 2, 2),
    ]
    assert await read("a.xlsx", xlsx()) == [
        TextBlock("Costs", 1, 1, 1, 1),
        TextBlock("item; euro", 1, 1, 1),
        TextBlock("item: milk; euro: 1.5", 1, 2, 2),
        TextBlock("Empty", 2, 1, 1, 1),
    ]
    assert await read("a.docx", docx("Lease", "The rent is due.", "The cat may stay.")) == [
        TextBlock("Lease", 0, 1, 1, 1),
        TextBlock("The rent is due.", 0, 2, 2),
        TextBlock("The cat may stay.", 0, 3, 3),
    ]
    assert await read("a.odt", odt()) == [
        TextBlock("Lease", 0, 1, 1, 2),
        TextBlock("The rent is due.", 0, 2, 2),
        TextBlock("milk | 1.50 euro", 0, 3, 3),
        TextBlock("in a list", 0, 4, 4),
    ]
    assert await read("a.pptx", pptx(("Plan", "start in May"), ("End", "stop in June"))) == [
        TextBlock("Plan", 1, 1, 1, 1),
        TextBlock("start in May", 1, 2, 2),
        TextBlock("End", 2, 1, 1, 1),
        TextBlock("stop in June", 2, 2, 2),
    ]
    assert await read("a.pdf", pdf(["first page", "its end"], ["second page"])) == [
        TextBlock("first page", 1, 1, 1),
        TextBlock("its end", 1, 2, 2),
        TextBlock("second page", 2, 1, 1),
    ]


async def test_headers_and_footers_of_a_printed_pdf_are_told_once(parser):
    """And what differs from page to page in more than the page's number stays."""
    printed = [
        [
            "11/30/26, 10:29 AM Minutes",
            f"what was said {'here' * page}",
            f"Carried forward {page * page * 3} EUR",
            f"file:///home/ann/minutes.html {page}/4",
        ]
        for page in range(1, 5)
    ]
    blocks = await parser.parse("a.pdf", pdf(*printed))
    texts = [block.text for block in blocks]
    assert texts == [*printed[0], *(line for page in printed[1:] for line in page[1:3])]
    assert [block.line for block in blocks if block.page == 3] == [2, 3]
    short = await parser.parse("a.pdf", pdf(*printed[:2]))
    assert [block.text for block in short] == [line for page in printed[:2] for line in page]
    alone = await parser.parse("a.pdf", pdf(*([f"page {number}"] for number in range(1, 6))))
    assert len(alone) == 5  # no page is left without its only text


def locked_pdf() -> bytes:
    writer, packed = pypdf.PdfWriter(), io.BytesIO()
    writer.append(io.BytesIO(pdf(["secret"])))
    writer.encrypt("word", algorithm="RC4-128")
    writer.write(packed)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.pdf", docx("Lease"), "named .pdf, but its bytes are a ZIP archive or an office file"),
        ("a.txt", pdf(["x"]), "named .txt, but its bytes are a PDF; rename it"),
        ("a.md", b"\x7fELF\0\0", "but its bytes are a program"),
        ("a.csv", b"a,b\0c", "but its bytes are no text"),
        ("a.docx", b"words", "but its bytes are no .docx, or damaged"),
        ("a.docx", xlsx(), "named .docx, but its bytes are a .xlsx; rename it"),
        ("a.xlsx", zipped({"x": "y"}), "but its bytes are a ZIP archive of something else"),
        ("a.doc", b"\xd0\xcf\x11\xe0", "which is not read here; save it as one of: csv, docx"),
        ("a.docx", docx("Lease")[:-30], "or damaged; rename it, or save it anew"),
        ("a.pdf", b"%PDF-1.7\nrubbish", "a damaged PDF"),
        ("a.pdf", locked_pdf(), "locked with a password; unlock it and save it anew"),
        ("a.pdf", b"", "empty: not one byte is in it; save or download it anew"),
        ("a.docx", b"", "empty: not one byte is in it"),
        ("a.pdf", pdf([]), "1 pages without any text"),
        ("a.xlsx", zipped({"xl/workbook.xml": "<not closed"}), "damaged, or no xlsx"),
        ("a.docx", zipped({"word/document.xml": " " * (600 << 20)}), "unpacks to 600 MB"),
        ("a.odt", docx("Lease"), "named .odt, but its bytes are a .docx; rename it"),
        ("a.odt", zipped({"content.xml": ENTITIES}), "damaged, or no odt"),
    ],
)
async def test_what_is_no_such_document_is_told_and_the_next_one_is_read(parser, name, data, told):
    with pytest.raises(DocumentError) as refused:
        await parser.parse(name, data)
    assert str(refused.value).startswith(f"{name}: ") and told in str(refused.value)
    assert await parser.parse("b.txt", b"whole") == [TextBlock("whole", 0, 1, 1)]


async def test_a_document_of_400_mb_is_refused_before_a_byte_of_it_is_sent(parser, monkeypatch):
    class Sparse(bytes):
        def __len__(self) -> int:
            return 400_000_000

    with pytest.raises(DocumentError, match=r"400 MB, at most 67 MB of one document are read"):
        await parser.parse("big.pdf", Sparse())
    assert parser._plugin.connection is None


async def test_a_document_that_kills_the_parser_breaks_itself_alone(parser, monkeypatch):
    monkeypatch.setattr(documents, "PARSE_S", 0.001)  # as if it never ended
    with pytest.raises(DocumentError, match="the parser gave up"):
        await parser.parse("a.pdf", pdf(*[["line"] * 50] * 40))
    monkeypatch.undo()
    assert await parser.parse("b.txt", b"whole") == [TextBlock("whole", 0, 1, 1)]


async def test_a_large_document_comes_back_whole(parser):
    text = "\n\n".join(f"paragraph {number} " + "x" * 90 for number in range(20_000))
    blocks = await parser.parse("a.txt", text.encode())
    assert "\n\n".join(block.text for block in blocks) == text
    assert [block.line for block in blocks] == list(range(1, 40_000, 2))


async def test_characters_that_nobody_sees_do_not_come_through(parser):
    hidden = "pay\u200b \U000e0041\U000e0042now\u202e"
    (block,) = await parser.parse("a.txt", hidden.encode())
    assert block.text == "pay now"


def test_the_formats_that_are_read_are_those_that_are_looked_for():
    aliases = {"htm", "markdown", "text", "tsv", "xhtml"}
    assert {suffix.removeprefix(".") for suffix in documents.SUFFIXES} == {
        *formats.FORMATS,
        *aliases,
    }
