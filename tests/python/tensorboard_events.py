"""Reads an event file of ssl-report with TensorBoard's own reader and prints what is in it.

    python tests/python/tensorboard_events.py FILE

Prints a line a scalar, `tag step value`, then the texts and images with their sizes. Fails if TensorBoard
finds no version, no values, or a record that is damaged. Needs tensorboard:

    pip install tensorboard
    cargo run -p ssl-report --example demo -- /tmp/demo.html /tmp/demo.svg /tmp/events.out.tfevents.1
    python tests/python/tensorboard_events.py /tmp/events.out.tfevents.1
"""

import argparse
import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

EVERYTHING = {"scalars": 0, "images": 0, "tensors": 0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    path = parser.parse_args().file

    # The loader compares checksums and stops at a record that is damaged.
    records = len(list(RawEventFileLoader(path).Load()))
    whole = records == framed_records(path)
    events = EventAccumulator(path, size_guidance=EVERYTHING).Reload()
    tags = events.Tags()
    for tag in tags["scalars"]:
        for event in events.Scalars(tag):
            print(tag, event.step, event.value)
    for tag in tags["tensors"]:
        for event in events.Tensors(tag):
            kind = events.SummaryMetadata(tag).plugin_data.plugin_name
            print(tag, event.step, kind, event.tensor_proto.string_val[0].decode())
    for tag in tags["images"]:
        for event in events.Images(tag):
            print(tag, event.step, f"{event.width} x {event.height}, {len(event.encoded_image_string)} bytes")
    print(f"{records} records, version {events.file_version}{'' if whole else ', damaged'}")
    return not (whole and events.file_version == 2.0 and tags["scalars"])


def framed_records(path: str) -> int:
    """The number of records by their lengths alone."""
    data, at, count = Path(path).read_bytes(), 0, 0
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        at += 8 + 4 + length + 4
        count += 1
    return count


if __name__ == "__main__":
    sys.exit(main())
