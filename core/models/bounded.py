"""Runs a template that came with a model file, within bounds.

Knows jinja2's syntax tree. Knows nothing of roles or tokens.
Covered: reaching Python or the machine (jinja2's sandbox, with few filters and functions), looping for long, recursion,
texts and numbers that grow without end: each run has a budget of steps and letters, and ends with a `TemplateError`.
Not covered: what the template writes; a template may say anything in the model's name.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from datetime import datetime
from typing import Any, cast

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

LONGEST_SOURCE = 256 << 10  # letters; the longest published templates have 20,000
BUDGET = "*budget*"  # no name that a template can write
FILTERS = (
    "abs capitalize count default d dictsort first float int items join last length list lower map max min reject rejectattr "
    "replace reverse round safe select selectattr sort string title trim unique upper"
)
METHODS = (
    "capitalize count endswith find index isalnum isalpha isdigit isspace join lower lstrip removeprefix removesuffix "
    "replace rfind rindex rsplit rstrip split splitlines startswith strip title upper"
)
TEXTUAL = "capitalize lower upper title trim replace string float int"  # filters that write their input out
BITS = 256  # of a whole number
DATE = re.compile(r"[ %A-Za-z:,./-]{0,40}")  # what `strftime_now` takes


class Budget:
    """What one run may still use."""

    def __init__(self, messages: int) -> None:
        self.steps = 200_000 + 20_000 * messages
        self.letters = (1 << 20) + (1 << 14) * messages  # of all texts that are made, together
        self.longest = (1 << 16) + (1 << 10) * messages  # of one text or list

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
        """Count what is inside lists and objects, all the way down: a list of twice itself, sixty times, has no end.

        What is kept was walked when it was made, so the next walk is short. A namespace can be filled later and may hold
        itself: it is not `printed`.
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


class Generation(Extension):
    """`{% generation %}`: marks what the model says, for training with masks; here its content stands as it is."""

    tags = {"generation"}  # noqa: RUF012  # the library's way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The content."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Bounded(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with a budget in the place of trust."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[LoopControlExtension, Generation])
        kept = {name: counted(name, self.filters[name]) for name in FILTERS.split()}
        self.filters = kept | {"tojson": pass_context(to_json), "*each": each, "*write": write, "*join": join, "*step": step}
        self.filters["*hold"] = hold
        allowed = {name: self.globals[name] for name in ("range", "dict", "namespace")}
        self.globals = allowed | {"raise_exception": refuse, "strftime_now": strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """The syntax tree, with a price on everything that can repeat or grow."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = priced(cast(nodes.Expr, loop.iter), "*each", nodes.Const(weight(loop)))
        macros: list[nodes.Macro | nodes.CallBlock] = [*tree.find_all(nodes.Macro), *tree.find_all(nodes.CallBlock)]
        for macro in macros:
            macro.body.insert(0, nodes.ExprStmt(priced(nodes.Const(weight(macro)), "*step")))
        for output in list(tree.find_all(nodes.Output)):
            output.nodes = [
                priced(nodes.Const(part.data) if isinstance(part, nodes.TemplateData) else part, "*write")
                for part in output.nodes
            ]
        return cast(nodes.Template, joined(tree))

    def wrap_str_format(self, _value: Any) -> None:
        """No text is formatted here, whatever guards the library has for it: "{:999999999}" makes one without end."""

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """left operator right."""
        budget: Budget = context.parent[BUDGET]
        budget.step()
        if operator in ("**", "%") and not all(isinstance(side, int | float) and abs(side) < 1e4 for side in (left, right)):
            raise TemplateError(f"{operator} is only there for small numbers")
        if operator == "*":
            for sized, times in ((left, right), (right, left)):
                if isinstance(sized, str | list | tuple) and isinstance(times, int):
                    budget.make(len(sized) * max(times, 0))
        return budget.checked(super().call_binop(context, operator, left, right))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """obj(*args, **kwargs)."""
        budget: Budget = context.parent[BUDGET]
        budget.step(10)
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str):
            name = getattr(obj, "__name__", "")
            if name not in METHODS.split():
                raise TemplateError(f"a text has no {name:.40} here")
            budget.step(len(owner) >> 8)
            if name == "replace":
                budget.make(grown(budget, owner, *args, **kwargs))
            if name == "join":
                args = (sized_join(budget, owner, *args),)
        return budget.checked(super().call(context, obj, *args, **kwargs))


def joined(node: nodes.Node) -> Any:
    """The tree with each `a ~ b` turned into a counted join, and each list or object that is written in it counted."""
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, joined(value))
        elif isinstance(value, list):
            setattr(node, name, [joined(item) if isinstance(item, nodes.Node) else item for item in value])
    if isinstance(node, nodes.Concat):
        return priced(nodes.List(node.nodes), "*join")
    made = isinstance(node, nodes.List | nodes.Dict) or (isinstance(node, nodes.Tuple) and node.ctx == "load")
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
    budget: Budget = context.parent[BUDGET]
    return budget.each(items, price)


@pass_context
def step(context: Context, price: int) -> None:
    """A macro's price."""
    context.parent[BUDGET].step(price)


@pass_context
def write(context: Context, value: Any) -> str:
    """What the template puts out."""
    budget: Budget = context.parent[BUDGET]
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
    budget: Budget = context.parent[BUDGET]
    text = "".join(map(budget.text, parts))
    budget.make(len(text))
    return text


def counted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    """A filter of jinja2's whose input and output are counted."""
    wants = getattr(getattr(original, "jinja_pass_arg", None), "name", "")

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        budget: Budget = context.parent[BUDGET]
        budget.step(1 + (len(value) >> 8 if isinstance(value, str) else len(value) if isinstance(value, Sized) else 0))
        if name in TEXTUAL.split() and not isinstance(value, Iterator):
            budget.walk([value, *args, *kwargs.values()], printed=True)
        if name == "replace":
            budget.make(grown(budget, value, *args, **kwargs))
        if name == "join":
            value = sized_join(budget, args[0] if args else kwargs.get("d", ""), value)
        if isinstance(value, Iterator):
            value = budget.each(value)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        return budget.checked(original(*([first[wants]] if wants else []), value, *args, **kwargs))

    return run


def grown(budget: Budget, value: Any, old: Any = "", new: Any = "", *_rest: Any, **_named: Any) -> int:
    """The longest that `value.replace(old, new)` can become."""
    text, lengths = budget.text(value), [len(budget.text(one)) for one in (old, new)]
    return len(text) + (len(text) // max(lengths[0], 1) + 1) * lengths[1]


def sized_join(budget: Budget, separator: Any, items: Iterable[Any]) -> list[Any]:
    """The items of a join, its result counted before it is made."""
    found, between = list(budget.each(items)), len(budget.text(separator))
    budget.make(sum(len(budget.text(item)) + between for item in found))
    return found


def to_json(context: Context, value: Any, indent: int | None = None, sort_keys: bool = False, **_: Any) -> str:
    """As Hugging Face's templates expect it: letters stay letters."""
    if indent is not None and not 0 <= indent <= 8:
        raise TemplateError(f"tojson with indent {indent!r:.10}")
    context.parent[BUDGET].walk(value, printed=True)
    text = json.dumps(value, ensure_ascii=False, indent=indent, sort_keys=sort_keys)
    context.parent[BUDGET].make(len(text))
    return text


def strftime_now(form: str) -> str:
    """Today, in the template's form."""
    if not DATE.fullmatch(form):
        raise TemplateError(f"a date in the form {form!r:.40}")
    return datetime.now().strftime(form)


def refuse(reason: str) -> None:
    """What a template calls when it cannot write a conversation down."""
    raise TemplateError(reason)


def budgeted(variables: Mapping[str, Any], messages: int) -> dict[str, Any]:
    """What a run is given: the variables, and a budget under a name that no template can write."""
    return {**variables, BUDGET: Budget(messages)}
