"""One of our messages as the content of one of Flower's, and back.

Knows two shapes. A message of up to `INLINE_BYTES` is one field, and travels inside the message
itself: one request. A longer one is an array, because Flower cuts arrays, and nothing else, into
objects that are fetched one by one and named by their content: after an interruption only those
that are missing are sent again. Knows nothing of what messages say.
Always: what comes out is bytes or nothing; no pickle is ever loaded.
"""

import secrets

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.message_pb2 import ObjectTree

RECORD, FIELD = "letter", "bytes"
INLINE_BYTES = 4 << 20  # below one of Flower's chunks (5 MiB): cutting would win nothing


def to_record(payload: bytes) -> RecordDict:
    """Bytes as a Flower record."""
    if len(payload) <= INLINE_BYTES:
        return RecordDict({RECORD: ConfigRecord({FIELD: payload})})
    return RecordDict({RECORD: ArrayRecord({FIELD: Array(np.frombuffer(payload, np.uint8))})})


def payload_of(message: Message) -> bytes | None:
    """The bytes that `to_record` packed; None if the message holds something else."""
    record = message.content.get(RECORD) if message.has_content() else None
    if isinstance(record, ConfigRecord):
        field = record.get(FIELD)
        return field if isinstance(field, bytes) else None
    array = record.get(FIELD) if isinstance(record, ArrayRecord) else None
    if array is None or array.dtype != "uint8" or len(array.shape) != 1:
        return None
    try:
        return array.numpy().tobytes()  # numpy's own format, loaded without pickle
    except (TypeError, ValueError):
        return None


def answer_to(message: Message, content: RecordDict | Error) -> Message:
    """A reply, valid as long as the message: the coordinator made those times, so this node's
    clock has no say.
    """
    reply = Message(content, reply_to=message)
    asked = message.metadata
    reply.metadata.created_at, reply.metadata.ttl = asked.created_at, asked.ttl
    return reply


def is_inline(message: Message) -> bool:
    """Does the message carry all that it has to say? If not, its content must be fetched as
    objects.
    """
    return message.has_error() or isinstance(message.content.get(RECORD), ConfigRecord)


def name_inline(message: Message) -> ObjectTree:
    """Give an inline message its number, and the tree without branches that Flower wants to see for
    it.

    The number is random: Flower's own is a hash over objects that this message does not have.
    """
    number = secrets.token_hex(32)
    message.metadata.__dict__["_message_id"] = number
    return ObjectTree(object_id=number)
