// The package in a real browser: serves this folder, lets headless Chromium judge one genuine quote, and waits for what the page reports.
// usage: node test/browser.mjs [path to chromium]
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { extname, join } from "node:path";

const root = new URL("../", import.meta.url);
const data = new URL("../../../crates/attestation/tests/testdata/tdx/", import.meta.url);
const vector = JSON.parse(readFileSync(new URL("cases.json", data), "utf8")).find((entry) => entry.tcb_status === "UpToDate" && entry.id.startsWith("tdx4"));
const kinds = { ".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };
const page = `<!doctype html><meta charset="utf-8"><script type="module">
  import { Verifier } from "/dist/verify.js";
  const part = async (name) => (await fetch("/data/" + name)).arrayBuffer();
  const quote = new Uint8Array(await part(${JSON.stringify(vector.quote)}));
  const collateral = await (await fetch("/data/" + ${JSON.stringify(vector.collateral)})).json();
  const verifier = await Verifier.load();
  const verdict = verifier.verify(quote, { collateral, at: new Date(${vector.time} * 1000) });
  await fetch("/result?" + encodeURIComponent(verdict.verdict + " " + verdict.tcb_status));
</script>`;

let report;
const reported = new Promise((resolve) => (report = resolve));
const server = createServer((request, response) => {
  if (request.url.startsWith("/result?")) return void report(decodeURIComponent(request.url.slice(8)), response.end());
  if (request.url === "/") return void response.setHeader("content-type", "text/html").end(page);
  const file = request.url.startsWith("/data/") ? new URL(request.url.slice(6), data) : new URL(request.url.slice(1), root);
  try {
    response.setHeader("content-type", kinds[extname(file.pathname)] ?? "application/octet-stream").end(readFileSync(file));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const profile = mkdtempSync(join(tmpdir(), "dstack-browser-"));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", `--user-data-dir=${profile}`, "--remote-debugging-port=0"];
const browser = spawn(process.argv[2] ?? "chromium", [...flags, `http://127.0.0.1:${server.address().port}/`], { stdio: "ignore" });
const ended = new Promise((resolve) => browser.once("exit", resolve).once("error", resolve));
const late = new Promise((resolve) => setTimeout(resolve, 60_000, "nothing within 60 s").unref());
const found = await Promise.race([reported, late, ended.then(() => "the browser ended")]);
console.log(`browser: ${found}`);
if (found !== "VERIFIED UpToDate") process.exitCode = 1;
browser.kill();
await ended;
server.close();
rmSync(profile, { recursive: true, force: true });
