"""Encoders that are not built in: networks of timm, ONNX graphs and exported programs, each named by its hash.

`register` takes what a person names (`"onnx:FILE"`), examines it in a process with limits and stores it under its
SHA-256. `External` computes features with the stored file and with nothing else. A graph is hostile input: it is read
without pickle, only known operators are accepted, and every image goes through it alone, in a process with limits.
"""

from typing import TYPE_CHECKING

from fedveil.lazy import on_first_use

if TYPE_CHECKING:
    from fedveil.learning.encoders.external.extractor import External
    from fedveil.learning.encoders.external.register import Report, examine, examine_file, verify
    from fedveil.learning.encoders.external.spec import EncoderSpec, is_external
    from fedveil.learning.encoders.external.store import Store, encoder_folder

__all__ = [
    "EncoderSpec",
    "External",
    "Report",
    "Store",
    "encoder_folder",
    "examine",
    "examine_file",
    "is_external",
    "verify",
]

__getattr__, __dir__ = on_first_use(__name__)
