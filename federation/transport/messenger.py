"""Messages in the link state of our own SuperLink: put there for a node, taken from there when it
has answered.

Knows Flower's messages and objects. Knows nothing of time limits, of who is there, or of what
messages say.
Always: an answer is taken once, and whole; what belongs to a message is gone from the link state
after `forget`, so that months of rounds take no memory.
"""

from collections.abc import Collection, Iterator
from typing import cast

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.server.superlink.linkstate import LinkState
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import NoObjectInStoreError

from .records import is_inline, name_inline, payload_of, to_record

MESSAGE_TYPE = "train.payload"


class LinkStateMessenger:
    """The coordinator's box in one run."""

    def __init__(self, state: LinkState, run_id: int) -> None:
        self.state, self.run_id = state, run_id
        self.sent: dict[str, Message] = {}  # as the link state holds them, by number
        # answers whose objects are still coming: by the message's number
        self.announced: dict[str, str] = {}
        self.heads: dict[str, str] = {}  # names of the answers that came, by the message's number

    def put(self, node_id: int, payload: bytes, lifetime_s: float) -> str | None:
        """Leave a message for a node; its number, or None if Flower does not know the node."""
        message = Message(
            to_record(payload), dst_node_id=node_id, message_type=MESSAGE_TYPE, ttl=lifetime_s
        )
        if is_inline(message):
            tree = name_inline(message)
            if self.state.store_message_ins(message) is None:
                return None
            self.state.object_store.preregister(self.run_id, tree)
        else:
            message = self.put_objects(message)
        self.sent[message.metadata.message_id] = message
        return message.metadata.message_id

    def put_objects(self, message: Message) -> Message:
        """Store a long one in pieces; the message without them."""
        message.metadata.__dict__["_message_id"] = message.object_id
        with no_object_id_recompute():
            tree, objects = get_object_tree(message), get_all_nested_objects(message)
            bare, session = (
                remove_content_from_message(message),
                self.state.start_session(self.run_id),
            )
            _, missing = self.state.store_message_and_object_tree(bare, tree, session)
            for number in missing:
                self.state.store_object(self.run_id, session, number, objects[number].deflate())
        return bare

    def take(self, numbers: Collection[str]) -> Iterator[tuple[str, bytes | None, str]]:
        """Answers that are here whole: (message's number, answer, reason why there is none)."""
        asked = set(numbers) - set(self.announced)
        for reply in self.state.get_message_res(asked, self.run_id) if asked else ():
            number = reply.metadata.reply_to_message_id
            self.heads[number] = reply.metadata.message_id
            if is_inline(reply):
                yield number, *opened(reply)
            else:
                self.announced[number] = reply.metadata.message_id
        for number, head in list(self.announced.items()):
            if number in numbers and all((parts := self.parts(head)).values()):
                del self.announced[number]
                yield number, *inflate(head, cast(dict[str, bytes], parts))

    def parts(self, head: str) -> dict[str, bytes | None]:
        """The objects of one message, empty while they are missing; none if Flower has given up
        on them.
        """
        store = self.state.object_store
        try:
            tree = store.get_object_tree(head)
        except NoObjectInStoreError:
            return {}
        return {part.object_id: store.get(part.object_id) for part in iterate_object_tree(tree)}

    def leave_again(self, number: str) -> None:
        """The node never got this message: let Flower hand it out once more."""
        self.sent[number].metadata.delivered_at = ""

    def forget(self, numbers: Collection[str]) -> None:
        """Drop these messages and whatever belongs to them; answers to them that still come are
        turned away.
        """
        for late in self.state.get_message_res(
            {one for one in numbers if one not in self.heads}, self.run_id
        ):
            self.heads[late.metadata.reply_to_message_id] = late.metadata.message_id
        self.state.delete_messages(set(numbers))
        for number in numbers:
            self.sent.pop(number, None)
            self.announced.pop(number, None)
            for root in (number, self.heads.pop(number, "")):
                self.state.object_store.delete(root)
        if not self.sent:  # also what nobody announced, or what was cut off half-way
            self.state.delete_sessions_in_run(self.run_id)
            self.state.object_store.delete_objects_in_run(self.run_id)


def inflate(head: str, parts: dict[str, bytes]) -> tuple[bytes | None, str]:
    """The message behind objects that a node made as it liked, or why there is none."""
    try:
        message = inflate_object_from_contents(head, parts)
    # flwr raises whatever its parsers raise; a hostile node must not end the run
    except Exception as error:
        return None, f"objects that are no message ({type(error).__name__})"
    return (
        opened(message) if isinstance(message, Message) else (None, "objects that are no message")
    )


def opened(reply: Message) -> tuple[bytes | None, str]:
    """The message in an answer, or why there is none."""
    if reply.has_error():
        return None, reply.error.reason or ""
    return payload_of(reply), "no message of ours in it"
