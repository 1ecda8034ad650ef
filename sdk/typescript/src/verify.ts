/**
 * Verifies evidence of confidential VMs: the same code as `dstack verify`, compiled to WebAssembly.
 *
 * Nothing is fetched and nothing leaves the page: collateral and certificates are arguments.
 */
import type { QuoteCollateral, Verdict } from "./verdict.js";

export type { Check, Identity, Outcome, QuoteCollateral, TrustAnchor, Verdict, Word } from "./verdict.js";

/** Whom to trust, what to expect, and when. */
export interface VerifyOptions {
  /** The moment at which everything must be valid; default is now. */
  readonly at?: Date;
  /** Intel's collateral, for TDX and SGX. A saved bundle brings its own. */
  readonly collateral?: QuoteCollateral;
  /** Certificates of the evidence (VCEK or VLEK, ASK): PEM, or DER bytes. */
  readonly certificates?: readonly (string | Uint8Array)[];
  /** Root in place of the vendor's own; under any other root the verdict is `SIMULATED`. PEM, or DER bytes. */
  readonly root?: string | Uint8Array;
  /** Event log of the guest, JSON text. */
  readonly eventLog?: string;
  /** Event log of the firmware (CCEL). */
  readonly ccel?: Uint8Array;
  /** Report data that the evidence must carry; zeros are added behind. */
  readonly reportData?: Uint8Array;
  /** The challenge that the evidence must answer. */
  readonly nonce?: Uint8Array;
  /** The challenge was made at random for this very question. */
  readonly nonceIsFresh?: boolean;
  /** The app that is expected, hex. */
  readonly appId?: string;
  /** Documents (app-compose.json) that are expected, SHA-256 in hex. */
  readonly composeHashes?: readonly string[];
  /** OS images that are known to be good, hex. */
  readonly osImages?: readonly string[];
  /** Root certificate of the KMS that is expected: PEM, or DER bytes. */
  readonly kmsRoot?: string | Uint8Array;
  /** What is verified, for the verdict. */
  readonly source?: string;
}

/** Options that make no sense. Evidence never throws: it gets a verdict. */
export class VerifyOptionsError extends Error {
  override readonly name = "VerifyOptionsError";
}

/** What the WebAssembly module exports. */
interface Module {
  readonly memory: WebAssembly.Memory;
  dstack_input(length: number): number;
  dstack_verify(): number;
  dstack_output(): number;
}

/** A loaded verifier. Keeps nothing between calls. */
export class Verifier {
  readonly #module: Module;

  private constructor(module: Module) {
    this.#module = module;
  }

  /**
   * Loads the WebAssembly module: the one beside this file, or `source` where a bundler or a policy puts it elsewhere.
   *
   * Throws if it cannot be had.
   */
  static async load(source?: BufferSource | WebAssembly.Module | URL | string): Promise<Verifier> {
    const code = source === undefined || source instanceof URL || typeof source === "string" ? await read(source) : source;
    const module = code instanceof WebAssembly.Module ? code : await WebAssembly.compile(code);
    const instance = await WebAssembly.instantiate(module, {});
    return new Verifier(instance.exports as unknown as Module);
  }

  /**
   * The verdict about `evidence`: a quote, report, document, envelope, certificate or JSON, recognised by its content.
   *
   * Throws {@link VerifyOptionsError}; whatever is wrong with the evidence is in the verdict.
   */
  verify(evidence: Uint8Array | string, options: VerifyOptions = {}): Verdict {
    const bytes = typeof evidence === "string" ? new TextEncoder().encode(evidence) : evidence;
    const question = new TextEncoder().encode(JSON.stringify(wire(options)));
    const length = 4 + question.length + bytes.length;
    const pointer = this.#module.dstack_input(length);
    if (pointer === 0) throw new VerifyOptionsError("evidence and options are too long");
    const memory = this.#module.memory;
    new DataView(memory.buffer).setUint32(pointer, question.length, true);
    const request = new Uint8Array(memory.buffer, pointer, length);
    request.set(question, 4);
    request.set(bytes, 4 + question.length);
    const answered = this.#module.dstack_verify();
    // The memory may have grown, so the buffer is a new one.
    const answer = new Uint8Array(memory.buffer, this.#module.dstack_output(), answered);
    const result = JSON.parse(new TextDecoder().decode(answer)) as Verdict | { readonly error: string };
    if ("error" in result) throw new VerifyOptionsError(result.error);
    return result;
  }
}

async function read(source: URL | string | undefined): Promise<BufferSource> {
  const url = source === undefined ? new URL("./verdict.wasm", import.meta.url) : new URL(source, import.meta.url);
  if (url.protocol === "file:") {
    const { readFile } = await import("node:fs/promises");
    return new Uint8Array(await readFile(url));
  }
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url.href}: HTTP ${response.status}`);
  return response.arrayBuffer();
}

function wire(options: VerifyOptions): Record<string, unknown> {
  const pem = (certificate: string | Uint8Array | undefined): string | undefined =>
    certificate instanceof Uint8Array ? base64(certificate) : certificate;
  return {
    now: Math.floor((options.at ?? new Date()).getTime() / 1000),
    collateral: options.collateral,
    certificates: (options.certificates ?? []).map(pem),
    root: pem(options.root),
    eventLog: options.eventLog,
    ccel: options.ccel && base64(options.ccel),
    reportData: options.reportData && hex(options.reportData),
    nonce: options.nonce && hex(options.nonce),
    nonceIsFresh: options.nonceIsFresh ?? false,
    appId: options.appId,
    composeHashes: options.composeHashes ?? [],
    osImages: options.osImages ?? [],
    kmsRoot: pem(options.kmsRoot),
    source: options.source ?? "",
  };
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function base64(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}
