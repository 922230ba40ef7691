"""What a large cluster and large data ask for: `make bench-scale`, `python -m tests.bench.scale [record|tables]`.

Without a word it measures the constants that docs/scale.md rests on (`scale_measure.py`), and exits with 1 where one is
no longer what `scale_constants.json` has; `record` writes them there. `tables` prints the page's tables and draws its
picture, by formulas and simulations from what is recorded. The last line of a measurement is JSON.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).parent / "scale_constants.json"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"
RATE, SIZE = 0.3, 0.02
"""Parts by which what goes by the clock, and sizes, may differ. Seconds are told alone."""


def main() -> None:
    """Measure and compare, or write what is asked for."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word == "tables":
        from tests.bench.scale_picture import draw
        from tests.bench.scale_tables import filled

        PAGE.write_text(filled(PAGE.read_text()))
        print(draw(PAGE.parent / "images" / "scale.png"))
        return
    found = measured()
    if word == "record":
        RECORDED.write_text(json.dumps(found, indent=1) + "\n")
    changed = [name for name, value in found.items() if not alike(name, value, json.loads(RECORDED.read_text())[name])]
    print(f"not as recorded: {', '.join(changed) or 'none'}")
    print(json.dumps(found))
    sys.exit(1 if changed else 0)


def measured() -> dict[str, Any]:
    """All constants, by their names."""
    from tests.bench.scale_measure import measure

    home = Path(tempfile.mkdtemp(prefix="patchline-scale-"))
    try:
        return measure(home)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def alike(name: str, found: Any, recorded: Any) -> bool:
    """Whether a constant is what was recorded: counts to the request, what goes by the clock and sizes about."""
    if isinstance(found, dict):
        # Those that wait for each other look again.
        loose = RATE if name.startswith(("stop", "keeper", "metrics", "log", "store")) else 0.0
        return found.keys() == recorded.keys() and all(near(found[kind], recorded[kind], loose) for kind in found)
    return "seconds" in name or "_ms_" in name or near(found, recorded, SIZE)


def near(found: float, recorded: float, part: float) -> bool:
    return abs(found - recorded) <= part * max(abs(found), abs(recorded))


if __name__ == "__main__":
    main()
