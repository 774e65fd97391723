"""Pages in a browser, where there is one."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)


def browse(html: str, folder: Path) -> str:
    """The body that Chromium makes of a page, which says nothing on its console."""
    assert CHROMIUM
    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={folder / 'browser'}", "--dump-dom", file.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert not re.findall(".*CONSOLE.*", done.stderr)
    body = re.search(r"<body>(.*)</body>", done.stdout, re.DOTALL)
    assert body
    return body[1]
