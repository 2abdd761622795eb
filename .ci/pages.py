"""Looks at every page of the built site in a real browser, at a desktop's and a phone's width, in light and dark.

python .ci/pages.py SITE

A page fails that scrolls sideways, asks another host for anything, cannot show a picture, sets a formula wrong or with no
height, or shows letters that hardly differ from their ground. Needs Chromium; without it nothing is looked at.
"""

import functools
import html
import http.server
import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

LOOK = """<!doctype html><title>looking</title><pre id="found"></pre><script>
const pages = PAGES, widths = [1280, 390], schemes = ["default", "slate"];
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const light = (color) => {
  const [r, g, b] = color.match(/[\\d.]+/g).map((v) => (v / 255) ** 2.2);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
};
const look = (frame, width, scheme) => {
  const page = frame.contentDocument, faults = [];
  page.body.setAttribute("data-md-color-scheme", scheme);
  const root = page.documentElement;
  if (root.scrollWidth > root.clientWidth + 1) {
    const right = (e) => e.getBoundingClientRect().right;
    const wide = [...page.querySelectorAll(".md-content *")].filter((e) => right(e) > root.clientWidth + 1);
    const name = (e) => e.tagName.toLowerCase() + (e.className && e.className.split ? "." + e.className.split(" ")[0] : "");
    faults.push(`scrolls sideways: ${root.scrollWidth} pixels; ${[...new Set(wide.map(name))].slice(0, 6).join(", ")}`);
  }
  for (const e of page.querySelectorAll(".katex-error")) faults.push("formula: " + e.textContent);
  for (const e of page.querySelectorAll(".arithmatex")) {
    if (e.offsetParent && !e.querySelector(".katex, .katex-error")) faults.push("formula not set: " + e.textContent);
    else if (e.offsetParent && e.getBoundingClientRect().height < 5) faults.push("formula without height: " + e.textContent);
  }
  for (const e of page.querySelectorAll("img"))
    if (e.offsetParent && !(e.complete && e.naturalWidth)) faults.push("no picture: " + e.getAttribute("src"));
  for (const { name } of frame.contentWindow.performance.getEntriesByType("resource"))
    if (new URL(name).host !== location.host) faults.push("asks another host: " + name);
  const style = getComputedStyle(page.body), [a, b] = [light(style.color), light(style.backgroundColor)].sort();
  if (b / a < 4.5) faults.push(`letters ${style.color} on ${style.backgroundColor}`);
  return faults.map((fault) => `${width} pixels, ${scheme}: ${fault}`);
};
(async () => {
  const found = {};
  for (const page of pages) {
    found[page] = [];
    for (const width of widths) {
      const frame = document.createElement("iframe");
      frame.style = `width:${width}px;height:1000px;border:0`;
      const loaded = new Promise((done) => (frame.onload = done));
      frame.src = page;
      document.body.append(frame);
      await loaded;
      frame.contentWindow.addEventListener("error", (e) => found[page].push(`${width} pixels: ${e.message}`));
      await frame.contentDocument.fonts.ready;
      for (const image of frame.contentDocument.images) { image.loading = "eager"; await image.decode().catch(() => 0); }
      await wait(50);
      for (const scheme of schemes) found[page].push(...look(frame, width, scheme));
      frame.remove();
    }
  }
  document.getElementById("found").textContent = JSON.stringify(found);
})();
</script>"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves the site and the page that looks at it."""

    look = ""

    def do_GET(self) -> None:
        if self.path != "/looking":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.look.encode())

    def log_message(self, *args) -> None:
        pass


def main(site: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        print("no Chromium here: the pages were not looked at")
        return
    pages = sorted("/" + str(path.relative_to(site)) for path in site.rglob("*.html") if path.name != "404.html")
    Quiet.look = LOOK.replace("PAGES", json.dumps(pages))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=600000", "--dump-dom",
             f"http://127.0.0.1:{server.server_address[1]}/looking"], capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        server.shutdown()
    found = json.loads(html.unescape(re.search('<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)[1]) or "{}")
    faults = [f"{page}: {fault}" for page, of_page in found.items() for fault in of_page]
    if missing := sorted(set(pages) - set(found)):
        faults.append(f"not looked at: {', '.join(missing)}")
    if faults:
        sys.exit("\n".join(faults))
    print(f"{len(pages)} pages, each at 1280 and 390 pixels, light and dark: nothing wrong")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
