/** The verdict in a word. `SIMULATED` proves nothing about hardware. */
export type Word = "VERIFIED" | "VERIFIED WITH CAVEATS" | "SIMULATED" | "NOT VERIFIED";

/** How a check ended. */
export type Outcome = "pass" | "fail" | "skipped" | "unknown";

/** One check with its result. */
export interface Check {
  /** Stable name, such as `quote-signature`. */
  readonly name: string;
  readonly outcome: Outcome;
  /** What was found. */
  readonly detail: string;
  /** What was asked, as a statement that needs no knowledge of the field. */
  readonly says: string;
}

/** Somebody or something the verdict rests on. */
export interface TrustAnchor {
  readonly role: string;
  readonly anchor: string;
  /** Where the trust in it comes from. */
  readonly origin: string;
}

/** What a dstack VM is; all of it measured. */
export interface Identity {
  readonly app_id: string | null;
  readonly app_name: string | null;
  readonly compose_hash: string | null;
  readonly instance_id: string;
  readonly os_image_hash: string | null;
  readonly device_id: string | null;
}

/** The same document that `dstack verify --json` prints. */
export interface Verdict {
  readonly verdict: Word;
  readonly platform: string;
  readonly tcb_status: string | null;
  readonly advisory_ids: readonly string[];
  /** Registers and facts, hex for bytes. Not to be believed where the verdict is `NOT VERIFIED`. */
  readonly claims: Readonly<Record<string, string>>;
  readonly checks: readonly Check[];
  readonly trust_anchors: readonly TrustAnchor[];
  readonly reason: string;
  /** What to do about it; absent unless `NOT VERIFIED`. */
  readonly fix?: string;
  readonly caveats: readonly string[];
  readonly identity: Identity;
  readonly source: string;
  readonly policy: string;
  /** Unix seconds. */
  readonly verified_at: number;
  /** Unix seconds until which the vendor's papers allow this verdict. */
  readonly valid_until: number | null;
}

/** Intel's collateral for a TDX or SGX quote, as collateral services give it. Signed, so its origin need not be trusted. */
export interface QuoteCollateral {
  readonly pck_crl_issuer_chain: string;
  readonly root_ca_crl: string;
  readonly pck_crl: string;
  readonly tcb_info_issuer_chain: string;
  readonly tcb_info: string;
  readonly tcb_info_signature: string;
  readonly qe_identity_issuer_chain: string;
  readonly qe_identity: string;
  readonly qe_identity_signature: string;
  readonly pck_certificate_chain?: string;
}
