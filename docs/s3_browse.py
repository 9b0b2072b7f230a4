"""Make docs/images/s3-browse.svg: the browser itself over a real bucket with the sample's files.

Needs the development set-up; run from the root of the repository: `python -m docs.s3_browse`.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr

from slmx.files import write_bytes
from slmx.s3.browse import Shelf
from slmx.s3.browser import Browser
from slmx.settings import S3Settings
from tests.s3.servers import Server, running

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "NQ-open.dev.merged.jsonl": "NQ-open.dev.merged.jsonl",
    "simple_qa_test_set_with_documents.csv": "simple_qa_test_set_with_documents.csv",
    "datasets/nq/train.json": "NQ-open.dev.merged.jsonl",
    "rag/smollm2.0a1b2c3d/artifacts/notes/README.md": "README.md",
}


def fill(server: Server) -> None:
    """The files that the picture shows."""
    client = server.client()
    client.create_bucket(Bucket=server.bucket)
    for key, name in FILES.items():
        client.put_object(Bucket=server.bucket, Key=key, Body=(ROOT / "slmx" / "sample" / name).read_bytes())


async def picture(server: Server) -> str:
    """Open the browser, preview the table, and take its picture."""
    settings = S3Settings(
        endpoint=server.endpoint,
        access_key=SecretStr(server.access_key),
        secret_key=SecretStr(server.secret_key),
        path_style=True,
    )
    shelf = Shelf(settings, server.bucket, Path("data"))
    shelf.place = "https://s3.example.org"  # a port that changes with each run is no part of it
    browser = Browser(shelf)
    async with browser.run_test(size=(130, 20)) as pilot:
        while not browser.complete:
            await pilot.pause(0.05)
        await pilot.press("end", "enter")
        await pilot.pause(1.0)
        svg = browser.export_screenshot(title="slmx s3 browse")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)  # nothing is fetched to look at it


def main() -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder, running("rclone", Path(folder)) as server:
        ready = replace(server, bucket="datasets")
        fill(ready)
        svg = asyncio.run(picture(ready))
    write_bytes(ROOT / "docs" / "images" / "s3-browse.svg", svg.encode())


if __name__ == "__main__":
    main()
