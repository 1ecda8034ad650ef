#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use proptest::prelude::*;
use rand_core::OsRng;

use super::*;

fn key() -> EnvSecret {
    EnvSecret::new(Secret::new([9; 32]))
}

fn sealed(plaintext: &[u8]) -> Vec<u8> {
    seal_bytes(&key().public_key(), plaintext, &Secret::new([1; 32]), &[2; 12]).unwrap()
}

fn open_text(plaintext: &str) -> Result<OpenedEnv, EnvError> {
    open_env(&key(), &sealed(plaintext.as_bytes()), &["A".to_owned(), "B".to_owned()])
}

#[test]
fn sealing_is_byte_exact() {
    let secret = hex::decode("4f3cf0a19a0444674c8e51222afd395b8df9fad2ba3cd7956f640a4b3c046db6").unwrap();
    let recipient = EnvSecret::new(Secret::from_slice(&secret).unwrap()).public_key();
    let plaintext = encode_env(&[EnvVar::new("A", "b")]).unwrap();

    let blob = seal_bytes(&recipient, &plaintext, &Secret::new([1; 32]), &[2; 12]).unwrap();

    assert_eq!(
        hex::encode(blob),
        "a4e09292b651c278b9772c569f5fa9bb13d906b46ab68c9df9dc2b4409f8a209020202020202020202020202e2a83140dfd3195ff9bd4c0c513af4e8\
         d8765fdc8d26c6afcba03458d5f2eac5860288c6ed62b84b71cb3f9a9c7d07bbf1"
    );
}

#[test]
fn keeps_allowed_names_in_order_and_reports_the_rest() {
    let opened = open_text(r#"{"env":[{"key":"B","value":"2"},{"key":"X","value":"9"},{"key":"A","value":"1"}]}"#).unwrap();

    assert_eq!(opened.vars, [EnvVar::new("B", "2"), EnvVar::new("A", "1")]);
    assert_eq!(opened.skipped, ["X"]);
}

#[test]
fn refuses_a_public_key_of_small_order() {
    assert_eq!(seal_env(&[0; 32], &[], &mut OsRng), Err(EnvError::WeakPublicKey));

    let mut blob = sealed(b"{\"env\":[]}");
    blob.splice(..32, [0; 32]);
    assert_eq!(open_env(&key(), &blob, &[]), Err(EnvError::WeakPublicKey));
}

#[test]
fn refuses_another_key() {
    let blob = sealed(b"{\"env\":[]}");

    assert_eq!(open_env(&EnvSecret::new(Secret::new([8; 32])), &blob, &[]), Err(EnvError::Authentication));
}

#[test]
fn refuses_sizes_that_cannot_be() {
    for size in [0, 59, MAX_SEALED_ENV_BYTES + 1] {
        assert_eq!(open_env(&key(), &vec![7; size], &[]), Err(EnvError::SealedSize { got: size }));
    }
}

#[test]
fn refuses_names_outside_the_grammar() {
    let long = "A".repeat(MAX_ENV_KEY_BYTES + 1);
    for name in ["", "1A", "A-B", "A B", "Ä", "A=B", "A\\n", long.as_str()] {
        let text = format!(r#"{{"env":[{{"key":"OK","value":""}},{{"key":"{name}","value":""}}]}}"#);

        assert_eq!(open_text(&text), Err(EnvError::Name { position: 2 }), "{name}");
    }
    assert!(open_text(&format!(r#"{{"env":[{{"key":"{}","value":""}}]}}"#, "A".repeat(MAX_ENV_KEY_BYTES))).is_ok());
}

#[test]
fn refuses_values_that_are_too_long_or_hold_nul() {
    let value = |n: usize| format!(r#"{{"env":[{{"key":"A","value":"{}"}}]}}"#, "v".repeat(n));

    assert!(open_text(&value(MAX_ENV_VALUE_BYTES)).is_ok());
    assert_eq!(open_text(&value(MAX_ENV_VALUE_BYTES + 1)), Err(EnvError::Value { key: "A".into() }));
    assert_eq!(open_text(r#"{"env":[{"key":"A","value":"x\u0000y"}]}"#), Err(EnvError::Value { key: "A".into() }));
}

#[test]
fn refuses_too_many_too_large_and_doubled() {
    let many = |n: usize| {
        let items: Vec<String> = (0..n).map(|i| format!(r#"{{"key":"K{i}","value":""}}"#)).collect();
        format!(r#"{{"env":[{}]}}"#, items.join(","))
    };
    assert!(open_text(&many(MAX_ENV_ITEMS)).is_ok());
    assert_eq!(open_text(&many(MAX_ENV_ITEMS + 1)), Err(EnvError::TooMany { got: MAX_ENV_ITEMS + 1 }));

    let vars: Vec<EnvVar> = (0..9).map(|i| EnvVar::new(format!("K{i}"), "v".repeat(MAX_ENV_VALUE_BYTES))).collect();
    assert!(matches!(encode_env(&vars), Err(EnvError::TooLarge { .. })));

    assert_eq!(open_text(r#"{"env":[{"key":"A","value":"1"},{"key":"A","value":"2"}]}"#), Err(EnvError::Duplicate { key: "A".into() }));
}

#[test]
fn syntax_errors_show_the_position_and_no_content() {
    let error = open_text("{\"env\":[{\"key\":\"A\",\n\"value\":hunter2}]}").unwrap_err();

    assert_eq!(error, EnvError::Syntax { line: 2, column: 9 });
    assert!(!error.to_string().contains("hunter2"));
    for text in ["", "[]", "null", "{}", r#"{"env":{}}"#, r#"{"env":[{"key":"A"}]}"#, r#"{"env":[]} x"#] {
        assert!(matches!(open_text(text), Err(EnvError::Syntax { .. })), "{text}");
    }
}

#[test]
fn debug_shows_no_value() {
    assert_eq!(format!("{:?}", EnvVar::new("A", "hunter2")), "EnvVar(A=..)");
}

proptest! {
    #[test]
    fn what_is_sealed_opens(values in prop::collection::vec("[^\0]{0,40}", 0..20)) {
        let vars: Vec<EnvVar> = values.iter().enumerate().map(|(i, v)| EnvVar::new(format!("K_{i}"), v.as_str())).collect();
        let names: Vec<String> = vars.iter().map(|v| v.key.clone()).collect();

        let blob = seal_env(&key().public_key(), &vars, &mut OsRng).unwrap();

        let opened = open_env(&key(), &blob, &names).unwrap();
        prop_assert_eq!(opened.vars, vars);
    }

    #[test]
    fn any_flipped_bit_is_noticed(position in 0_usize..1000, bit in 0_u32..8) {
        let mut blob = sealed(br#"{"env":[{"key":"A","value":"1"}]}"#);
        // The top bit of the ephemeral key is ignored by X25519.
        let index = position % blob.len();
        prop_assume!(!(index == 31 && bit == 7));
        blob[index] ^= 1 << bit;

        prop_assert!(open_env(&key(), &blob, &["A".to_owned()]).is_err());
    }

    #[test]
    fn never_panics_on_foreign_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open_env(&key(), &bytes, &[]);
        let _ = parse(&bytes, &[]);
    }
}
