// Genuine quotes with Intel's collateral, judged by the WebAssembly module as by the command line.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Verifier, VerifyOptionsError } from "../dist/verify.js";

const data = new URL("../../../crates/attestation/tests/testdata/", import.meta.url);
const bytes = (name) => new Uint8Array(readFileSync(new URL(name, data)));
const json = (name) => JSON.parse(readFileSync(new URL(name, data), "utf8"));
const verifier = await Verifier.load();
const cases = json("tdx/cases.json");
const at = (seconds) => new Date(seconds * 1000);
const question = (vector) => ({ at: at(vector.time), collateral: json(`tdx/${vector.collateral}`) });
const genuine = cases.find((vector) => vector.tcb_status === "UpToDate" && vector.id.startsWith("tdx4"));

test("verdicts, statuses and advisories are those of the reference tools", () => {
  assert.ok(cases.length >= 40);
  for (const vector of cases) {
    const verdict = verifier.verify(bytes(`tdx/${vector.quote}`), question(vector));
    if (vector.verdict === "reject") {
      assert.equal(verdict.verdict, "NOT VERIFIED", vector.id);
      continue;
    }
    assert.notEqual(verdict.verdict, "NOT VERIFIED", `${vector.id}: ${verdict.reason}`);
    assert.equal(verdict.tcb_status, vector.tcb_status, vector.id);
    assert.deepEqual([...verdict.advisory_ids].sort(), [...(vector.advisory_ids ?? [])].sort(), vector.id);
  }
});

test("a flipped bit in the signed part is not verified", () => {
  const quote = bytes(`tdx/${genuine.quote}`);
  quote[48 + 200] ^= 1;
  const verdict = verifier.verify(quote, question(genuine));
  assert.equal(verdict.verdict, "NOT VERIFIED");
  assert.ok(verdict.checks.some((check) => check.outcome === "fail"));
});

test("every truncation gets a verdict", () => {
  const quote = bytes(`tdx/${genuine.quote}`);
  for (let length = 0; length < quote.length; length += 97) {
    assert.equal(verifier.verify(quote.subarray(0, length), question(genuine)).verdict, "NOT VERIFIED", `${length} bytes`);
  }
});

test("the clock is the caller's", () => {
  const late = verifier.verify(bytes(`tdx/${genuine.quote}`), { ...question(genuine), at: new Date("2060-01-01T00:00:00Z") });
  assert.equal(late.verdict, "NOT VERIFIED");
});

test("report data must be the expected one", () => {
  const quote = bytes(`tdx/${genuine.quote}`);
  const own = verifier.verify(quote, question(genuine)).claims.report_data;
  const right = Uint8Array.from(own.match(/../g), (digits) => parseInt(digits, 16));
  assert.notEqual(verifier.verify(quote, { ...question(genuine), reportData: right }).verdict, "NOT VERIFIED");
  right[0] ^= 1;
  assert.equal(verifier.verify(quote, { ...question(genuine), reportData: right }).verdict, "NOT VERIFIED");
});

test("options that make no sense are the caller's mistake", () => {
  assert.throws(() => verifier.verify("00", { appId: "xyz" }), VerifyOptionsError);
  assert.throws(() => verifier.verify("00", { root: "no certificate" }), VerifyOptionsError);
});
