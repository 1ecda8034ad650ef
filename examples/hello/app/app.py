"""A small web application inside a CVM. It knows dstack only as plain HTTP on a Unix socket."""

import hashlib
import html
import http.client
import json
import os
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

SOCKET = "/var/run/dstack.sock"
KEY_PATH = "hello/greeting"


class Agent(http.client.HTTPConnection):
    """One connection to the guest agent."""

    def __init__(self):
        super().__init__("dstack", timeout=30)

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(SOCKET)


def ask(method, **fields):
    """Calls the guest agent and returns its answer."""
    agent = Agent()
    try:
        agent.request("POST", "/" + method, json.dumps(fields), {"Content-Type": "application/json"})
        response = agent.getresponse()
        answer = json.loads(response.read())
    finally:
        agent.close()
    if response.status != 200:
        raise RuntimeError(answer.get("error", "the guest agent refused"))
    return answer


def fingerprint(secret):
    """Enough to compare two values, not enough to learn one."""
    return hashlib.sha256(secret).hexdigest()[:16]


def facts():
    info = ask("Info")
    key = bytes.fromhex(ask("GetKey", path=KEY_PATH)["key"])
    secret = os.environ.get("HELLO_SECRET", "")
    return {
        "app_id": info["app_id"],
        "instance_id": info["instance_id"],
        "compose_hash": info["compose_hash"],
        "key_path": KEY_PATH,
        "key_fingerprint": fingerprint(key),
        "secret_is_set": bool(secret),
        "secret_fingerprint": fingerprint(secret.encode()) if secret else None,
    }


def quote(nonce):
    """A quote whose report data is the caller's nonce."""
    # Never quote 64 bytes of a stranger's choice: they could be the digest that binds somebody's certificate to this app.
    if not nonce or len(nonce) > 64 or len(nonce) % 2:
        raise ValueError("nonce must be 1 to 32 bytes of hex")
    bytes.fromhex(nonce)
    return ask("GetQuote", report_data=nonce)


def evidence(nonce):
    """The quote with the document it vouches for: what `dstack verify` reads."""
    answer = quote(nonce)
    answer["app_compose"] = json.loads(ask("Info")["tcb_info"])["app_compose"]
    return answer


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Hello from a confidential VM</title>
<style>
 body {{ font: 17px/1.6 system-ui, sans-serif; max-width: 46rem; margin: 4rem auto; padding: 0 1.2rem; color: #0f172a; background: #f8fafc }}
 h1 {{ font-size: 1.9rem; margin-bottom: .2rem }}
 dl {{ background: #fff; border: 1px solid #e2e8f0; border-radius: 12px; padding: 1rem 1.4rem }}
 dt {{ color: #64748b; font-size: .85rem; margin-top: .6rem }}
 dd {{ margin: 0; font-family: ui-monospace, monospace; overflow-wrap: anywhere }}
 code {{ background: #e2e8f0; border-radius: 5px; padding: .1rem .35rem }}
 a {{ color: #4338ca }}
</style>
<h1>Hello from a confidential VM</h1>
<p>This page comes from an ordinary compose project. What it knows about itself:</p>
<dl>{rows}</dl>
<p>Do not believe this page, check it: <code>dstack verify</code> with this address, or ask for a
<a href="/api/quote?nonce=00">quote over a nonce of yours</a>.</p>
"""


def page():
    labels = {
        "app_id": "App id",
        "instance_id": "Instance id",
        "compose_hash": "Compose hash",
        "key_fingerprint": f"Fingerprint of the key derived for {KEY_PATH!r}",
        "secret_fingerprint": "Fingerprint of the sealed secret",
    }
    values = facts()
    rows = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(str(values[name] or 'not set'))}</dd>" for name, label in labels.items()
    )
    return PAGE.format(rows=rows)


class Handler(BaseHTTPRequestHandler):
    """Routes; errors of the agent are 503, errors of the caller 400."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        nonce = parse_qs(url.query).get("nonce", [""])[0]
        try:
            if url.path == "/":
                self.answer(200, page(), "text/html; charset=utf-8")
            elif url.path == "/health":
                self.answer(200, "ok\n", "text/plain")
            elif url.path == "/api/info":
                self.answer(200, json.dumps(facts()))
            elif url.path == "/api/quote":
                self.answer(200, json.dumps(quote(nonce)))
            elif url.path == "/.well-known/dstack/evidence":
                self.answer(200, json.dumps(evidence(nonce)))
            else:
                self.answer(404, json.dumps({"error": "no such page"}))
        except ValueError as error:
            self.answer(400, json.dumps({"error": str(error)}))
        except (OSError, RuntimeError) as error:
            self.answer(503, json.dumps({"error": f"guest agent: {error}"}))

    def answer(self, status, body, kind="application/json"):
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        """The web server in front logs."""


if __name__ == "__main__":
    ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
