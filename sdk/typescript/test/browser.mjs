// The package in a real browser: serves this folder, lets headless Chromium judge one genuine quote, and reads the page it leaves.
// usage: node test/browser.mjs [path to chromium]
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { extname } from "node:path";
import { promisify } from "node:util";

const root = new URL("../", import.meta.url);
const data = new URL("../../../crates/attestation/tests/testdata/tdx/", import.meta.url);
const vector = JSON.parse(readFileSync(new URL("cases.json", data), "utf8")).find((entry) => entry.tcb_status === "UpToDate" && entry.id.startsWith("tdx4"));
const kinds = { ".js": "text/javascript", ".wasm": "application/wasm", ".json": "application/json" };
const page = `<!doctype html><meta charset="utf-8"><pre id="out">waiting</pre><script type="module">
  import { Verifier } from "/dist/verify.js";
  const part = async (name) => (await fetch("/data/" + name)).arrayBuffer();
  const quote = new Uint8Array(await part(${JSON.stringify(vector.quote)}));
  const collateral = await (await fetch("/data/" + ${JSON.stringify(vector.collateral)})).json();
  const verifier = await Verifier.load();
  const verdict = verifier.verify(quote, { collateral, at: new Date(${vector.time} * 1000) });
  document.getElementById("out").textContent = verdict.verdict + " " + verdict.tcb_status;
</script>`;

const server = createServer((request, response) => {
  if (request.url === "/") return void response.setHeader("content-type", "text/html").end(page);
  const file = request.url.startsWith("/data/") ? new URL(request.url.slice(6), data) : new URL(request.url.slice(1), root);
  try {
    response.setHeader("content-type", kinds[extname(file.pathname)] ?? "application/octet-stream").end(readFileSync(file));
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((ready) => server.listen(0, "127.0.0.1", ready));
const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", "--dump-dom"];
try {
  const { stdout } = await promisify(execFile)(process.argv[2] ?? "chromium", [...flags, `http://127.0.0.1:${server.address().port}/`], { timeout: 120_000 });
  const found = /<pre id="out">([^<]*)<\/pre>/.exec(stdout)?.[1] ?? "nothing";
  console.log(`browser: ${found}`);
  if (!found.startsWith("VERIFIED UpToDate")) process.exitCode = 1;
} finally {
  server.close();
}
