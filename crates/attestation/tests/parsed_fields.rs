//! Every field of a quote is the one an independent program reads, and every digest over them the one a deployed KMS answered.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

use dstack_attestation::{UnverifiedQuote, UnverifiedSgxQuote, mr_aggregated};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/testdata/");

fn must_read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{FOLDER}{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[derive(Deserialize)]
struct Case {
    quote: String,
    fields: Value,
}

fn td_fields(quote: &UnverifiedQuote) -> Vec<(&'static str, String)> {
    let fields = quote.fields();
    let [rtmr0, rtmr1, rtmr2, rtmr3] = fields.rtmr.0;
    let mut all = vec![
        ("user_data", hex::encode(quote.header_user_data())),
        ("tee_tcb_svn", hex::encode(fields.tee_tcb_svn)),
        ("mr_seam", hex::encode(fields.mr_seam)),
        ("mr_signer_seam", hex::encode(fields.mr_signer_seam)),
        ("seam_attributes", hex::encode(fields.seam_attributes)),
        ("td_attributes", hex::encode(fields.td_attributes)),
        ("xfam", hex::encode(fields.xfam)),
        ("mr_td", hex::encode(fields.mrtd)),
        ("mr_config_id", hex::encode(fields.mr_config_id)),
        ("mr_owner", hex::encode(fields.mr_owner)),
        ("mr_owner_config", hex::encode(fields.mr_owner_config)),
        ("rtmr0", hex::encode(rtmr0)),
        ("rtmr1", hex::encode(rtmr1)),
        ("rtmr2", hex::encode(rtmr2)),
        ("rtmr3", hex::encode(rtmr3)),
        ("report_data", hex::encode(fields.report_data)),
    ];
    all.extend(fields.tee_tcb_svn2.map(|svn| ("tee_tcb_svn2", hex::encode(svn))));
    all.extend(fields.mr_service_td.map(|service| ("mr_service_td", hex::encode(service))));
    all
}

fn enclave_fields(quote: &UnverifiedSgxQuote) -> Vec<(&'static str, String)> {
    let fields = quote.fields();
    vec![
        ("cpu_svn", hex::encode(fields.cpu_svn)),
        ("attributes", hex::encode(fields.attributes)),
        ("mr_enclave", hex::encode(fields.mr_enclave)),
        ("mr_signer", hex::encode(fields.mr_signer)),
        ("isv_prod_id", hex::encode(fields.isv_prod_id.to_le_bytes())),
        ("isv_svn", hex::encode(fields.isv_svn.to_le_bytes())),
        ("report_data", hex::encode(fields.report_data)),
    ]
}

#[test]
fn fields_are_those_an_independent_program_reads() {
    let cases: Vec<Case> = serde_json::from_slice(&must_read("fields.json")).unwrap();
    assert!(cases.len() >= 13);
    for case in cases {
        let bytes = must_read(&case.quote);
        let (version, fields) = if case.fields["tee"] == "SGX" {
            let quote = UnverifiedSgxQuote::parse(&bytes).unwrap();
            (quote.version(), enclave_fields(&quote))
        } else {
            let quote = UnverifiedQuote::parse(&bytes).unwrap();
            (quote.version(), td_fields(&quote))
        };

        assert_eq!(case.fields["version"], version, "{}", case.quote);
        for (name, value) in fields {
            assert_eq!(case.fields[name], value.as_str(), "{}: {name}", case.quote);
        }
    }
}

#[derive(Deserialize)]
struct Identity {
    quote: String,
    mr_aggregated: String,
    old_device_id: String,
    compose_hash: String,
    app_id: String,
}

#[test]
fn identities_are_those_of_deployed_machines() {
    let cases: Vec<Identity> = serde_json::from_slice(&must_read("identity/cases.json")).unwrap();
    assert!(cases.len() >= 5);
    for case in cases {
        let quote = UnverifiedQuote::parse(&must_read(&format!("identity/{}", case.quote))).unwrap();
        let fields = quote.fields();

        assert_eq!(hex::encode(mr_aggregated(fields, fields.rtmr.get(3).unwrap())), case.mr_aggregated, "{}", case.quote);
        assert_eq!(hex::encode(Sha256::digest(quote.header_user_data())), case.old_device_id, "{}", case.quote);
        assert_eq!(hex::encode(fields.mr_config_id)[..66], format!("01{}", case.compose_hash), "{}", case.quote);
        assert_eq!(case.compose_hash[..40], case.app_id, "{}", case.quote);
    }
}
