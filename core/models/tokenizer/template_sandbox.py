"""Runs a template that came with a model file, within bounds; its own text comes out as
`TemplateText`.

Knows jinja2's syntax tree. Knows nothing of roles or tokens.
Always: what a run gives is what jinja2's own sandbox gives, letter for letter; only constants of
the template's source (and what the caller hands in as `TemplateText`) are the template's own
letters.
Covered: reaching Python or the machine (jinja2's sandbox, with few filters and functions), looping
for long, recursion, texts and numbers that grow without end: each run has a budget of steps and
letters, and ends with a `TemplateError`.
Not covered: what the template writes; a template may say anything in the model's name.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, LoopControlExtension
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from markupsafe import Markup

from .provenance import TemplateText, concat, own, percent, same_places, tracing

LONGEST_SOURCE = 256 << 10  # letters; the longest published templates have 20,000
BUDGET = "*budget*"  # no name that a template can write
# all of jinja2's but `random`, whose answer is another each time, and `urlize`, which is slow
FILTERS = (
    "abs attr batch capitalize center count d default dictsort e escape filesizeformat first float "
    "forceescape format groupby "
    "indent int items join last length list lower map max min pprint reject rejectattr replace "
    "reverse round safe select "
    "selectattr slice sort string striptags sum title trim truncate unique upper urlencode "
    "wordcount wordwrap xmlattr"
)
METHODS = (  # all of a text's but those that make bytes or tables
    "capitalize casefold center count endswith expandtabs find index isalnum isalpha isascii "
    "isdecimal isdigit isidentifier "
    "islower isnumeric isprintable isspace istitle isupper join ljust lower lstrip partition "
    "removeprefix removesuffix replace "
    "rfind rindex rjust rpartition rsplit rstrip split splitlines startswith strip swapcase title "
    "upper zfill"
)
# grow by a number in their arguments
PADDING = ("batch", "center", "expandtabs", "indent", "ljust", "rjust", "slice", "zfill")
WRITTEN = (  # filters that write their input out
    "capitalize center e escape float forceescape format indent int lower pprint replace string "
    "striptags title trim truncate "
    "upper urlencode wordcount wordwrap xmlattr"
)
SLOW = ("striptags", "wordwrap")  # move what is left of a text, again and again
BITS = 256  # of a whole number
WIDEST = 4096  # letters that a format may fill up to
DATE = re.compile(r"(?:[^%]|%[-_]?[A-Za-z%]){0,60}")  # what `strftime_now` takes: no widths
WIDTH = re.compile(r"[0-9]+|\*")
SPECS = re.compile(r"%[-#0 +]*([0-9*.]*)")


class RenderBudget:
    """What one run may still use."""

    def __init__(self, messages: int, letters: int = 0) -> None:
        """For a conversation of so many messages, which have so many letters together."""
        self.steps = 200_000 + 20_000 * messages + 16 * letters
        # of all texts that are made, together
        self.letters = (1 << 20) + (1 << 14) * messages + 128 * letters
        self.longest = (1 << 16) + (1 << 10) * messages + 8 * letters  # of one text or list

    def step(self, count: int = 1) -> None:
        """Use steps."""
        self.steps -= count
        if self.steps < 0:
            raise TemplateError("it runs for too long")

    def make(self, length: int) -> None:
        """Make a text or list of this length."""
        self.letters -= length
        if length > self.longest or self.letters < 0:
            raise TemplateError("it makes texts that are too long")

    def checked(self, found: Any) -> Any:
        """A value that was made, counted."""
        if isinstance(found, str):
            self.make(len(found))
        elif isinstance(found, list | tuple | dict):
            self.walk(found)
        elif isinstance(found, int) and found.bit_length() > BITS:
            raise TemplateError("it computes with numbers that are too large")
        return found

    def walk(self, found: Any, *, printed: bool = False) -> None:
        """Count what is inside lists and objects, all the way down: a list of twice itself, sixty
        times, has no end.

        What is kept was walked when it was made, so the next walk is short. A namespace can be
        filled later and may hold itself: it is not `printed`.
        """
        count, inside = 0, [found]
        while inside:
            one = inside.pop()
            count += 1 + (len(one) >> 6 if isinstance(one, str) else 0)
            if count > self.longest:
                raise TemplateError("it makes lists that are too long")
            if isinstance(one, dict):
                inside += [*one.keys(), *one.values()]
            elif isinstance(one, list | tuple):
                inside += one
            elif printed and isinstance(one, Namespace):
                raise TemplateError("a namespace cannot be written out")
        self.step(count)

    def text(self, found: Any) -> str:
        """A value written out."""
        if not isinstance(found, str):
            self.walk(found, printed=True)
        return str(found)

    def each(self, items: Iterable[Any], weight: int = 1) -> Iterator[Any]:
        """The items, each at a price."""
        for item in items:
            self.step(weight)
            yield item


class GenerationTag(Extension):
    """`{% generation %}`: marks what the model says, for training with masks; here its content
    stands as it is.
    """

    tags = {"generation"}  # noqa: RUF012  # the library's way

    def parse(self, parser: Parser) -> nodes.Node:
        """A block that is called at once, as in `transformers`: what is set inside stays inside."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    def content(self, caller: Callable[[], str]) -> str:
        """What stands inside."""
        return caller()


class OwnText(CodeGenerator):
    """Python code in which each text of the source is a `TemplateText`."""

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802  # the library's name
        """A constant, of the source or folded from some."""
        kept = cast(Bounded, self.environment).constants
        kept.append(constant(node.as_const(frame.eval_ctx)))
        self.write(f"environment.constants[{len(kept) - 1}]")


def constant(value: Any) -> Any:
    """A constant whose texts are the template's, also inside lists and objects."""
    if isinstance(value, list | tuple):
        return type(value)(map(constant, value))
    if isinstance(value, dict):
        return {constant(key): constant(item) for key, item in value.items()}
    return TemplateText(value) if type(value) is str else value


class Formatter(SandboxedFormatter):
    """`"…{}…".format(…)`, piece by piece."""

    def __init__(self, environment: "Bounded", budget: RenderBudget) -> None:
        super().__init__(environment)
        self.budget, self.number = budget, 0

    def vformat(self, form: str, values: Sequence[Any], named: Mapping[str, Any]) -> str:
        """The whole; a field without a format keeps its marks."""
        pieces: list[str] = []
        literal_own = 0 not in own(form)
        for literal, name, spec, conversion in self.parse(form):
            pieces.append(TemplateText(literal) if literal_own else literal)
            if name is not None:
                if name == "":
                    name, self.number = str(self.number), self.number + 1
                value = self.get_field(name, values, named)[0]
                self.budget.walk(value, printed=True)
                value = self.convert_field(value, cast(Any, conversion))
                pieces.append(
                    self.format_field(value, self.vformat(spec, values, named) if spec else "")
                )
        return concat(pieces)

    def format_field(self, value: Any, spec: str) -> str:
        """One value."""
        if spec and not isinstance(value, str | int | float):
            raise TemplateError(f"a {type(value).__name__} is formatted by {spec!r:.40}")
        self.budget.make(widths(spec))
        return cast(
            str, self.budget.checked(format(value, spec) if spec else self.budget.text(value))
        )


class Bounded(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a budget in the place of trust."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])
    code_generator_class = OwnText
    concat = staticmethod(concat)  # of what a macro, a block or the whole puts out

    def __init__(self) -> None:
        self.constants: list[Any] = []  # of the one template that is made of this
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, GenerationTag]
        )
        own_filters = {"format": pass_context(fill), "sum": pass_context(total)}
        kept = {
            name: counted(name, own_filters.get(name, self.filters[name]))
            for name in FILTERS.split()
        }
        self.filters = kept | {
            "tojson": pass_context(to_json),
            "*each": each,
            "*write": write,
            "*join": join,
            "*step": step,
        }
        self.filters["*hold"] = hold
        allowed = {
            name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")
        }
        self.globals = allowed | {"raise_exception": refuse, "strftime_now": strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The syntax tree, with a price on everything that can repeat or grow."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = priced(cast(nodes.Expr, loop.iter), "*each", nodes.Const(weight(loop)))
        macros: list[nodes.Macro | nodes.CallBlock] = [
            *tree.find_all(nodes.Macro),
            *tree.find_all(nodes.CallBlock),
        ]
        for macro in macros:
            macro.body.insert(0, nodes.ExprStmt(priced(nodes.Const(weight(macro)), "*step")))
        for output in list(tree.find_all(nodes.Output)):
            output.nodes = [
                priced(
                    nodes.Const(part.data) if isinstance(part, nodes.TemplateData) else part,
                    "*write",
                )
                for part in output.nodes
            ]
        return cast(nodes.Template, joined(tree))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """A text's `format`, within the budget; whatever guards the library has for it,
        "{:999999999}" has no end there.
        """
        form = getattr(value, "__self__", None)
        name = getattr(value, "__name__", "") if isinstance(form, str) else ""
        if name not in ("format", "format_map"):
            return None
        if isinstance(form, Markup):
            raise TemplateError("an escaped text is formatted")

        @pass_context
        def run(context: Context, *values: Any, **named: Any) -> str:
            fields, given = ((), values[0]) if name == "format_map" else (values, named)
            return Formatter(self, context.parent[BUDGET]).vformat(cast(str, form), fields, given)

        return run

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left operator right."""
        budget: RenderBudget = context.parent[BUDGET]
        budget.step()
        if operator == "%" and isinstance(left, str):
            return budget.checked(formatted(budget, left, right))
        if operator in ("**", "%") and not all(
            isinstance(side, int | float) and abs(side) < 1e4 for side in (left, right)
        ):
            raise TemplateError(f"{operator} is only there for small numbers")
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int):
                    budget.make(len(sized) * max(times, 0))
        return budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """obj(*args, **kwargs)."""
        budget: RenderBudget = context.parent[BUDGET]
        budget.step(10)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, int | float | bytes):
            raise TemplateError(
                f"a {type(owner).__name__} has no {name:.40} here"
            )  # to_bytes(10**9)
        if isinstance(owner, str):
            if name not in METHODS.split():
                raise TemplateError(f"a text has no {name:.40} here")
            budget.step(len(owner) >> 8)
            if name == "replace":
                budget.make(grown(budget, owner, *args, **kwargs))
            if name == "join":
                args = (sized_join(budget, owner, *args),)
            if name in PADDING:
                budget.make(padded(owner, args, kwargs))
            obj = obj if isinstance(owner, Markup) else getattr(tracing(owner), name)
        return budget.checked(super().call(context, obj, *args, **kwargs))


def joined(node: nodes.Node) -> Any:
    """The tree with each `a ~ b` turned into a counted join, and each list or object that is
    written in it counted.
    """
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, joined(value))
        elif isinstance(value, list):
            setattr(
                node,
                name,
                [joined(item) if isinstance(item, nodes.Node) else item for item in value],
            )
    if isinstance(node, nodes.Concat):
        return priced(nodes.List(node.nodes), "*join")
    made = isinstance(node, nodes.List | nodes.Dict) or (
        isinstance(node, nodes.Tuple) and node.ctx == "load"
    )
    return priced(cast(nodes.Expr, node), "*hold") if made else node


def priced(node: nodes.Expr, name: str, *arguments: nodes.Expr) -> nodes.Filter:
    """`node|name(arguments)`."""
    return nodes.Filter(node, name, list(arguments), [], None, None)


def weight(node: nodes.Node) -> int:
    """How many nodes of the tree one pass touches, loops inside counted once."""
    return 1 + sum(weight(child) for child in node.iter_child_nodes())


@pass_context
def each(context: Context, items: Iterable[Any], price: int) -> Iterator[Any]:
    """A loop's items."""
    budget: RenderBudget = context.parent[BUDGET]
    return budget.each(items, price)


@pass_context
def step(context: Context, price: int) -> None:
    """A macro's price."""
    context.parent[BUDGET].step(price)


@pass_context
def write(context: Context, value: Any) -> str:
    """What the template puts out."""
    budget: RenderBudget = context.parent[BUDGET]
    text = budget.text(value)
    budget.make(len(text))
    return text


@pass_context
def hold(context: Context, value: Any) -> Any:
    """A list or object that stands in the template."""
    context.parent[BUDGET].walk(value)
    return value


@pass_context
def join(context: Context, parts: list[Any]) -> str:
    """`a ~ b`."""
    budget: RenderBudget = context.parent[BUDGET]
    text = concat(map(budget.text, parts))
    budget.make(len(text))
    return text


def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's whose input and output are counted."""
    wants = getattr(getattr(original, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: RenderBudget = context.parent[BUDGET]
        budget.step(
            1
            + (
                len(value) >> 8
                if isinstance(value, str)
                else len(value)
                if isinstance(value, Sized)
                else 0
            )
        )
        if name in WRITTEN.split() and not isinstance(value, Iterator):
            budget.walk([value, *args, *kwargs.values()], printed=True)
        if name == "replace":
            budget.make(grown(budget, value, *args, **kwargs))
            value = tracing(budget.text(value))
        if name == "join":
            separator, *rest = args or (kwargs.pop("d", ""),)
            value, args = (
                sized_join(budget, separator, value),
                (tracing(budget.text(separator)), *rest),
            )
        if name in PADDING:
            budget.make(padded(value, args, kwargs))
        if name in SLOW:
            wrap(budget, budget.text(value), args, kwargs)
        if isinstance(value, Iterator):
            value = budget.each(value)
        first = {
            "context": context,
            "eval_context": context.eval_ctx,
            "environment": context.environment,
        }
        found = original(*([first[wants]] if wants else []), value, *args, **kwargs)
        return budget.checked(same_places(value, found) if name == "title" else found)

    return run


def grown(
    budget: RenderBudget, value: Any, old: Any = "", new: Any = "", *_rest: Any, **_named: Any
) -> int:
    """The longest that `value.replace(old, new)` can become."""
    text, lengths = budget.text(value), [len(budget.text(one)) for one in (old, new)]
    return len(text) + (len(text) // max(lengths[0], 1) + 1) * lengths[1]


def padded(value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The longest that a text or list can become that is padded by the numbers and texts in
    these arguments.
    """
    numbers = [
        abs(one) if isinstance(one, int) else len(one)
        for one in (*args, *kwargs.values())
        if isinstance(one, int | str)
    ]
    places = (
        1 + sum(map(value.count, "\t\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"))
        if isinstance(value, str)
        else 1
    )
    return places * max(numbers, default=8) + (len(value) if isinstance(value, Sized) else 0)


def wrap(budget: RenderBudget, text: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Count what the library does in putting breaks into a text, or in taking tags out of it."""
    given = [*args, *kwargs.values()]
    width = min((one for one in given if type(one) is int), default=79)
    budget.step(len(text) ** 2 // max(width, 1) >> 10)
    budget.make(len(text) * max((len(one) for one in given if isinstance(one, str)), default=1))


def widths(spec: str) -> int:
    """The widths that stand in a format, together.

    Raises:
        TemplateError: one of them is no number, or a large one.
    """
    found = WIDTH.findall(spec)
    if not all(number.isdigit() and len(number) < 5 and int(number) <= WIDEST for number in found):
        raise TemplateError(f"a text is formatted by {spec!r:.40}")
    return sum(map(int, found))


def formatted(budget: RenderBudget, form: str, values: Any) -> str:
    """`form % values`."""
    unnamed = re.sub(r"%\([^()]*\)", "%", form)
    if "%(" in unnamed:
        raise TemplateError(f"a text is formatted by {form!r:.40}")
    budget.walk(values, printed=True)
    named = (
        [len(budget.text(one)) for one in values.values()] if isinstance(values, Mapping) else []
    )
    budget.make(sum(map(widths, SPECS.findall(unnamed))) + form.count("%") * max(named, default=0))
    return cast(str, form % values if isinstance(form, Markup) else percent(form, values))


def fill(context: Context, value: Any, *values: Any, **named: Any) -> str:
    """The filter `format`."""
    budget: RenderBudget = context.parent[BUDGET]
    if values and named:
        raise TemplateError("a text is formatted by position and by name at once")
    return formatted(budget, budget.text(value), named or values)


def total(context: Context, items: Iterable[Any], attribute: Any = None, start: Any = 0) -> Any:
    """The filter `sum`."""
    environment = cast(Bounded, context.environment)
    part: Callable[[Any], Any] = (
        (lambda item: item) if attribute is None else make_attrgetter(environment, attribute)
    )
    for item in items:
        start = environment.call_binop(context, "+", start, part(item))
    return start


def sized_join(budget: RenderBudget, separator: Any, items: Iterable[Any]) -> list[Any]:
    """The items of a join, its result counted before it is made."""
    found, between = list(budget.each(items)), len(budget.text(separator))
    budget.make(sum(len(budget.text(item)) + between for item in found))
    return found


def to_json(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """As Hugging Face's templates expect it: letters stay letters, and options in this order."""
    budget: RenderBudget = context.parent[BUDGET]
    if (len(indent) if isinstance(indent, str) else indent or 0) > 8:
        raise TemplateError(f"tojson with indent {indent!r:.10}")
    if separators is not None and max(map(len, separators)) > 8:
        raise TemplateError(f"tojson with separators {separators!r:.40}")
    budget.walk(value, printed=True)
    text = json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget.make(len(text))
    return text


def strftime_now(form: str) -> str:
    """Today, in the template's form."""
    if not DATE.fullmatch(form):
        raise TemplateError(f"a date in the form {form!r:.40}")
    return datetime.now().strftime(form)


def refuse(reason: str) -> None:
    """What a template calls when it cannot write a conversation down."""
    raise TemplateError(reason)


def budgeted(variables: Mapping[str, Any], messages: int, letters: int) -> dict[str, Any]:
    """What a run is given: the variables, and a budget under a name that no template can write."""
    return {**variables, BUDGET: RenderBudget(messages, letters)}
