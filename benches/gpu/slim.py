"""Takes all libraries but one out of a wheel: `slim.py WHEEL LIBRARY`."""

import sys
import zipfile
from pathlib import Path

path, kept = Path(sys.argv[1]), sys.argv[2]
smaller = path.with_suffix(".smaller")
with zipfile.ZipFile(path) as wheel, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as slim:
    for entry in wheel.infolist():
        if entry.filename.endswith(".so") and not entry.filename.endswith("/" + kept):
            continue
        slim.writestr(entry, wheel.read(entry.filename))
smaller.replace(path)
