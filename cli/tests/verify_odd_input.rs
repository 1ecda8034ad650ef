//! What strangers, and tired users, give to `dstack verify`: each a plain answer, an exit code of the contract, and nothing that a terminal
//! would obey.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests panic on purpose")]

mod command;

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use command::{Answer, EVIDENCE, TDX, evidence, judge, path_of, peak_memory_of_children, scratch, verify};
use serde_json::{Value, json};

const QUOTE: &str = "quotes/f1c8503301126c30.bin";
const COLLATERAL: &str = "collateral/b0c06f000000-tdx-platform-20250313-e17.json";
const TIME: &str = "2025-03-23T20:36:12Z";

fn tdx(name: &str) -> String {
    path_of(&format!("{TDX}{name}"))
}

/// A genuine quote with its collateral, and one thing more.
fn genuine_with(more: &[&str]) -> Answer {
    judge(&tdx(QUOTE), &[&["--collateral", &tdx(COLLATERAL), "--at", TIME], more].concat())
}

/// Serves one connection after the other with `talk`, which gets it after the request's first bytes.
fn server(talk: fn(&mut TcpStream) -> std::io::Result<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _request = stream.read(&mut [0; 4096]);
            // Whoever hears enough hangs up.
            let _heard = talk(&mut stream);
        }
    });
    url
}

fn assert_no_commands(text: &str) {
    let found = text.chars().find(|c| c.is_control() && *c != '\n');
    assert!(found.is_none(), "{found:?} in {text:?}");
}

#[test]
fn servers_that_misbehave_leave_the_question_open() {
    type Talk = fn(&mut TcpStream) -> std::io::Result<()>;
    let talks: [(&str, Talk); 6] = [
        ("headers without end", |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n")?;
            loop {
                stream.write_all(&[b"X-More: ", [b'a'; 2000].as_slice(), b"\r\n"].concat())?;
            }
        }),
        ("a body without end", |stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n{\"quote\":\"")?;
            loop {
                stream.write_all(&[b'0'; 1 << 16])?;
            }
        }),
        ("another protocol", |stream| stream.write_all(b"SSH-2.0-OpenSSH_10.0\r\n")),
        ("nothing", |_| Ok(())),
        ("another place", |stream| stream.write_all(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")),
        ("commands for a terminal", |stream| {
            let body = "\x1b]0;owned\x07\x1b[2J\x1b[31mVERIFIED";
            write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        }),
    ];
    for (what, talk) in talks {
        let began = Instant::now();

        let answer = verify(&[&server(talk), "--offline"]);

        assert_eq!(answer.code, 3, "{what}: {}{}", answer.out, answer.err);
        assert!(answer.err.contains("cause:") && answer.err.contains("fix:"), "{what}: {}", answer.err);
        assert_no_commands(&answer.err);
        assert!(began.elapsed().as_secs() < 20, "{what}: {:?}", began.elapsed());
    }
    assert!(peak_memory_of_children() < 64 << 20, "{}", peak_memory_of_children());
}

#[test]
fn addresses_of_no_app_are_wrong_usage() {
    for url in
        ["ftp://app.example", "file:///etc/passwd", "https://", "https://[::1", "http://h:99999", "https://me:secret@app.example", "://"]
    {
        let answer = verify(&[url]);

        assert_eq!((answer.code, answer.err.contains("[rpc/bad-endpoint]")), (2, true), "{url}: {}", answer.err);
        assert!(answer.err.contains("fix:"), "{}", answer.err);
    }
}

#[test]
fn policies_that_are_none_say_the_line_and_what_was_expected() {
    let deep = format!("version = 1\nx = {}", "[".repeat(100_000));
    let cases: [(&[u8], &str); 11] = [
        (b"", "line 1: version: missing"),
        (b"\xff\xfev\0e\0r\0", "not text in UTF-8"),
        (b"version = \"1\"\n", "line 1: version: expected a number"),
        (b"version = 1\nversion = 1\n", "line 2: duplicate key"),
        (b"version = 9223372036854775808\n", "line 1: version"),
        (b"version = 1\nplatforms = \"tdx\"\n", "line 2: platforms: expected a list"),
        (b"version = 1\n[tcb]\naccepted = [true]\n", "line 3: tcb.accepted[0]: expected a TCB status"),
        (b"version = 1\nage = [1]\n", "line 2: age: is of type array, expected a table"),
        (b"version = 1\n[age]\nmax_collateral = 30\n", "line 3: age.max_collateral: expected a duration"),
        (b"version = 1\n[age]\nmax_collateral = \"-1d\"\n", "line 3: age.max_collateral: expected a duration"),
        (deep.as_bytes(), "more"),
    ];
    for (document, said) in cases {
        let answer = genuine_with(&["--policy", &scratch("policy.toml", document)]);

        assert_eq!((answer.code, answer.err.contains("verify/bad-policy")), (2, true), "{said}: {}", answer.err);
        assert!(answer.err.contains(said) && answer.err.contains("\"fix\""), "{said}: {}", answer.err);
        assert!(answer.err.len() < 2000, "{said}: {} bytes", answer.err.len());
    }
}

#[test]
fn collateral_with_absurd_fields_is_refused_as_collateral() {
    let genuine: Value = serde_json::from_slice(&evidence(&format!("{TDX}{COLLATERAL}"))).unwrap();
    let text = |field: &str| genuine[field].as_str().unwrap().to_owned();
    let pem = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".repeat(50);
    let late = text("tcb_info").replace("\"nextUpdate\":\"2025", "\"nextUpdate\":\"0000");
    let cases: [(&str, Value); 9] = [
        ("pck_crl", "zz".into()),
        ("tcb_info", 5.into()),
        ("tcb_info", "{}".into()),
        ("tcb_info", "[".repeat(100_000).into()),
        ("tcb_info", late.into()),
        ("tcb_info_signature", "".into()),
        ("qe_identity_signature", "00".into()),
        ("tcb_info_issuer_chain", pem.into()),
        ("root_ca_crl", "30".repeat(500_000).into()),
    ];
    for (field, value) in cases {
        let mut collateral = genuine.clone();
        collateral[field] = value;
        let path = scratch("collateral.json", collateral.to_string().as_bytes());

        let answer = judge(&tdx(QUOTE), &["--collateral", &path, "--at", TIME]);

        assert_eq!((answer.code, &answer.json()["verdict"]), (1, &"NOT VERIFIED".into()), "{field}: {}", answer.out);
        let (reason, fix) = (answer.json()["reason"].as_str().unwrap(), answer.json()["fix"].as_str().unwrap());
        let is_about_papers = ["collateral", "endorsements", "revocation"].iter().any(|word| reason.contains(word));
        assert!(is_about_papers && fix.contains("whole and unchanged"), "{field}: {reason}; {fix}");
    }
}

#[test]
fn json_of_the_wrong_types_names_the_place() {
    let cases: [(&[u8], &str); 7] = [
        (br#"{"quote":5}"#, "integer `5`, expected a string"),
        (br#"{"quote":{"bytes":[]}}"#, "expected a string"),
        (br#"{"quote":"0400","quote":"0500"}"#, "duplicate field `quote`"),
        (br#"{"quote":null,"attestation":null}"#, "neither `quote` nor"),
        (b"\xef\xbb\xbf{\"quote\":\"zz\"}", "`quote` is neither hex nor base64"),
        (br#"{"document":"84400000","revocation_lists":["zz"]}"#, "`revocation_lists` is not hex"),
        (b"\xff\xfe{\0\"\0q\0", "no kind of evidence"),
    ];
    for (document, said) in cases {
        let answer = judge(&scratch("odd.json", document), &[]);

        assert_eq!((answer.code, &answer.failed().unwrap()["name"]), (1, &"format".into()), "{said}: {}", answer.out);
        assert!(answer.json()["reason"].as_str().unwrap().contains(said), "{said}: {}", answer.out);
    }
}

#[test]
fn logs_that_are_none_are_named_as_logs() {
    let not_a_log = scratch("log", br#"{"imr":0}"#);
    let snp = path_of(&format!("{EVIDENCE}snp/reports/a20e02a2e8198894.bin"));
    let ccel = path_of(&format!("{TDX}{QUOTE}"));

    for (answer, said) in [
        (genuine_with(&["--ccel", &ccel]), "the CCEL is malformed"),
        (genuine_with(&["--event-log", &not_a_log]), "the event log is malformed"),
        (judge(&snp, &["--ccel", &ccel]), "the CCEL belongs to TDX evidence, and this is sev-snp"),
    ] {
        assert_eq!(answer.code, 1, "{}", answer.out);
        assert!(answer.json()["reason"].as_str().unwrap().starts_with(said), "{said}: {}", answer.out);
        assert_eq!(answer.json()["fix"], "give the file again, whole and unchanged");
    }
}

/// A certificate with a genuine quote that does not bind its key.
fn certificate(change: impl FnOnce(&mut rcgen::CertificateParams)) -> Vec<u8> {
    let quote = evidence(&format!("{TDX}{QUOTE}"));
    let length = u32::try_from(quote.len()).unwrap().to_be_bytes();
    let mut parameters = rcgen::CertificateParams::default();
    let wrapped = [&[0x04, 0x84], length.as_slice(), &quote].concat();
    parameters.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 1, 1], wrapped)];
    change(&mut parameters);
    parameters.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

#[test]
fn certificates_with_absurd_fields_are_refused_without_obeying_them() {
    type Change = fn(&mut rcgen::CertificateParams);
    let changes: [(&str, Change); 6] = [
        ("nothing", |_| ()),
        ("commands in its names", |parameters| {
            parameters.distinguished_name.push(rcgen::DnType::CommonName, "\x1b]0;owned\x07\x1b[2J VERIFIED\nVERIFIED");
        }),
        ("a name of 60,000 letters", |parameters| {
            parameters.distinguished_name.push(rcgen::DnType::CommonName, "a".repeat(60_000));
        }),
        ("a life of 8,000 years", |parameters| {
            (parameters.not_before, parameters.not_after) = (rcgen::date_time_ymd(1970, 1, 1), rcgen::date_time_ymd(9999, 12, 31));
        }),
        ("an end before its beginning", |parameters| {
            (parameters.not_before, parameters.not_after) = (rcgen::date_time_ymd(2999, 1, 1), rcgen::date_time_ymd(1970, 1, 1));
        }),
        ("more extensions than anybody reads", |parameters| {
            let more = (0..3000).map(|arc| rcgen::CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 62397, 2, arc], vec![5, 0]));
            parameters.custom_extensions.extend(more);
        }),
    ];
    for (what, change) in changes {
        let path = scratch("certificate.der", &certificate(change));
        let arguments = [path.as_str(), "--offline", "--collateral", &tdx(COLLATERAL), "--at", TIME];

        let answer = verify(&arguments);

        assert_eq!(answer.code, 1, "{what}: {}{}", answer.out, answer.err);
        assert!(answer.out.contains("NOT VERIFIED"), "{what}: {}", answer.out);
        assert_no_commands(&answer.out);
        assert!(answer.out.len() < 20_000, "{what}: {} bytes", answer.out.len());
    }
    let too_long = certificate(|parameters| parameters.distinguished_name.push(rcgen::DnType::CommonName, "a".repeat(300 << 10)));
    assert_eq!(judge(&scratch("long.der", &too_long), &[]).failed().unwrap()["detail"], "the certificate is malformed");
    let none = certificate(|parameters| parameters.custom_extensions.clear());
    assert_eq!(judge(&scratch("none.der", &none), &[]).failed().unwrap()["detail"], "the certificate carries no evidence");
}

#[test]
fn commands_in_the_log_of_evidence_are_not_obeyed() {
    let quote = hex::encode(evidence(&format!("{TDX}{QUOTE}")));
    let name = "\u{1b}]0;owned\u{7}\u{1b}[2J\nVERIFIED";
    let event = json!({ "imr": 3, "event_type": 0x0800_0001, "digest": "00".repeat(48), "event": name, "event_payload": "00" });
    let compose = json!({ "name": name }).to_string();
    let document = json!({ "quote": quote, "event_log": [event], "app_compose": compose }).to_string();
    let path = scratch("log.json", document.as_bytes());

    let answer = verify(&[&path, "--offline", "--collateral", &tdx(COLLATERAL), "--at", TIME]);

    assert_eq!(answer.code, 1, "{}{}", answer.out, answer.err);
    assert_no_commands(&answer.out);
}

#[test]
fn what_is_no_file_is_wrong_usage_and_what_is_empty_is_no_evidence() {
    let folder = path_of("cli");
    for answer in [judge(&folder, &[]), genuine_with(&["--collateral-file"]), genuine_with(&["--chain", &folder])] {
        assert_eq!(answer.code, 2, "{}{}", answer.out, answer.err);
    }
    let empty = judge("/dev/null", &[]);
    assert_eq!((empty.code, &empty.failed().unwrap()["detail"]), (1, &"the input is empty".into()));
    for time in ["99999-12-31T23:59:59Z", "2026-13-01T00:00:00Z", "1969-12-31T23:59:59Z", "now"] {
        let answer = judge(&tdx(QUOTE), &["--at", time]);
        assert_eq!((answer.code, answer.err.contains("verify/bad-time")), (2, true), "{time}: {}", answer.err);
    }
}
