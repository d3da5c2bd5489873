"""Writes tests/golden/text/captions-*.parquet: captions as pandas and pyarrow store them.

    python tests/reference/captions.py

Needs pandas and pyarrow. One file has pandas' defaults (Snappy, dictionaries, an index, columns of other types), one is
compressed by gzip in three groups of rows of one.
"""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

TEXT = Path(__file__).resolve().parent.parent / "golden" / "text"
ROWS = {
    "file_name": ["train/cat/1.png", "./train/cat/2.png", "train/dog/1.png"],
    "text": ["a cat, asleep", 'a "cat"', "ein Hündchen"],
}


def main() -> None:
    table = {"id": [1, 2, 3], "score": [0.5, None, 0.25], **ROWS}
    pd.DataFrame(table, index=["x", "y", "z"]).to_parquet(TEXT / "captions-pandas.parquet")
    pq.write_table(pa.table(ROWS), TEXT / "captions-gzip.parquet", compression="gzip", row_group_size=1)
    missing = {**ROWS, "text": ["a cat, asleep", None, "ein Hündchen"]}
    pq.write_table(pa.table(missing), TEXT / "captions-null.parquet")
    nested = {"file_name": ROWS["file_name"], "text": [{"en": text} for text in ROWS["text"]]}
    pq.write_table(pa.table(nested), TEXT / "captions-nested.parquet")


if __name__ == "__main__":
    main()
