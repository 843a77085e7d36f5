"""A letter as the content of a Flower message, and back.

Knows two shapes: a short letter is one field (three objects on the wire), a long one an array, because Flower cuts
arrays into chunks and nothing else. Knows nothing of what letters say.
Always: what comes out is bytes or nothing; no pickle is ever loaded.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

RECORD, FIELD = "letter", "bytes"
SHORT_BYTES = 256 << 10


def seal_letter(letter: bytes) -> RecordDict:
    """Bytes as a Flower record."""
    if len(letter) <= SHORT_BYTES:
        return RecordDict({RECORD: ConfigRecord({FIELD: letter})})
    return RecordDict({RECORD: ArrayRecord({FIELD: Array(np.frombuffer(letter, np.uint8))})})


def open_letter(message: Message) -> bytes | None:
    """The bytes that `seal_letter` packed; None if the message holds something else."""
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
