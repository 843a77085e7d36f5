"""Flower's grid in this process: nodes whose ClientApp gets its context as bytes with every
message, as stock SuperNodes do.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import context_from_proto, context_to_proto
from flwr.serverapp import Grid

Meddle = Callable[["LocalGrid", int, Message], Iterable[Message]]


class LocalGrid(Grid):
    """Nodes numbered from 1; `meddle` says which messages reach a node in place of one that was
    sent (none, several).
    """

    def __init__(
        self, app: ClientApp, nodes: Iterable[Mapping[str, Any]], run_config: Mapping[str, Any]
    ) -> None:
        self.app, self.run_config = app, dict(run_config)
        self.nodes = {number: dict(config) for number, config in enumerate(nodes, start=1)}
        # contexts, as a SuperNode keeps them
        self.kept = {number: self.fresh(number) for number in self.nodes}
        self.replies: dict[str, Message] = {}
        self.sent: list[Message] = []
        self.meddle: Meddle = lambda grid, node, message: [message]

    def fresh(self, node: int) -> Any:
        context = Context(
            run_id=1,
            node_id=node,
            node_config=self.nodes[node],
            state=RecordDict(),
            run_config=self.run_config,
            series_id=1,
        )
        return context_to_proto(context)

    def call(self, node: int, message: Message) -> Message:
        context = context_from_proto(self.kept[node])
        try:
            reply = self.app(message, context)
        except Exception as error:  # as Flower's runners: the context stays as it was
            return Message(Error(1, repr(error)), reply_to=message)
        self.kept[node] = context_to_proto(context)
        return reply

    def set_run(self, run: Any) -> None:
        raise AssertionError("nobody sets a run here")

    @property
    def run(self) -> Any:
        raise AssertionError("nobody asks for the run")

    def create_message(self, *arguments: Any, **named: Any) -> Message:
        raise AssertionError("deprecated")

    def get_node_ids(self) -> Iterable[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        numbers = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid4().hex
            numbers.append(message.metadata.message_id)
            self.sent.append(message)
            node = message.metadata.dst_node_id
            for reaching in self.meddle(self, node, message):
                self.replies.setdefault(message.metadata.message_id, self.call(node, reaching))
        return numbers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.replies.pop(number) for number in list(message_ids) if number in self.replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))
