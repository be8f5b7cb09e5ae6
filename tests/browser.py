"""Opens a page in Chromium and prints the value of a JavaScript expression as JSON: python browser.py PAGE WIDTH EXPRESSION [dark].

It waits until the expression has a value. Chromium is that of QtWebEngine, which pip installs (`-e '.[browser]'`). A program of its own,
since Qt has to own the main thread of its process.
"""

import json
import os
import sys
from pathlib import Path

from PyQt6.QtCore import QTimer, QUrl
from PyQt6.QtWebEngineWidgets import QWebEngineView
from PyQt6.QtWidgets import QApplication

_DARK = " --blink-settings=preferredColorScheme=0"
os.environ["QT_QPA_PLATFORM"] = "offscreen"
os.environ["QTWEBENGINE_CHROMIUM_FLAGS"] = "--no-sandbox --disable-gpu" + _DARK * ("dark" in sys.argv[4:])

page, width, expression = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
application = QApplication(["browser"])
view, timer = QWebEngineView(), QTimer()
view.resize(width, 900)


def look() -> None:
    """Ask for the value."""
    view.page().runJavaScript(f"JSON.stringify({expression})", end)


def end(value: str | None) -> None:
    """Print the value and end, if there is one."""
    if value:
        print(json.dumps(json.loads(value)), flush=True)
        timer.stop()
        application.quit()


timer.timeout.connect(look)
view.loadFinished.connect(lambda _: timer.start(100))
view.load(QUrl.fromLocalFile(str(page.resolve())))
view.show()
application.exec()
