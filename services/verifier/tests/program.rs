//! The program as it is run: configuration, files, exit codes.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

mod testbed;

use std::{
    path::Path,
    process::{Command, Output},
    time::{SystemTime, UNIX_EPOCH},
};

use testbed::{Bed, Image};

fn run(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dstack-verifier"));
    command.args(arguments).env("DSTACK_LOG", "off").envs(variables.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

#[test]
fn the_configuration_in_force_is_printed_with_the_environment_over_it() {
    let output = run(&["--check-config"], &[("DSTACK_VERIFIER_PORT", "8099"), ("DSTACK_VERIFIER_IMAGE_CACHE_DIR", "/x/images")]);

    assert!(output.status.success(), "{}", text(&output.stderr));
    let printed: toml::Table = toml::from_str(&text(&output.stdout)).unwrap();
    assert_eq!((printed["port"].as_integer(), printed["image_cache_dir"].as_str()), (Some(8099), Some("/x/images")));
}

#[test]
fn an_unknown_key_is_refused_with_code_and_fix() {
    let output = run(&["--check-config"], &[("DSTACK_VERIFIER_HOST", "0.0.0.0")]);

    assert_eq!(output.status.code(), Some(2));
    let error = text(&output.stderr);
    assert!(error.contains("[config/invalid]") && error.contains("DSTACK_VERIFIER_HOST") && error.contains("fix:"), "{error}");
}

/// Settings of a bed without any server, in a file.
fn config(bed: &Bed) -> String {
    let path = bed.dir.path().join("verifier.toml");
    let nowhere = "collateral_url = \"http://127.0.0.1:1\"\nimage_download_url = \"\"\n";
    std::fs::write(&path, format!("{nowhere}[danger]\nsimulated_root = \"{}\"\n", bed.root().display())).unwrap();
    path.display().to_string()
}

fn written(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn exit_codes_tell_valid_wrong_unusable_and_undecided_apart() {
    let bed = Bed::at(now());
    let config = config(&bed);
    let mut bundle = bed.request(&Image::documented(), [7; 64]);
    let without_collateral = bundle.to_string();
    bundle["collateral"] = serde_json::to_value(bed.collateral_at(now())).unwrap();
    let mut wrong = bundle.clone();
    wrong["event_log"] = wrong["event_log"].as_str().unwrap().replace("app-id", "app-ix").into();
    let cases = [
        ("valid", bundle.to_string(), 0, "\"is_valid\": true"),
        ("wrong", wrong.to_string(), 1, "NOT VERIFIED"),
        ("unusable", "{}".to_owned(), 2, ""),
        ("undecided", without_collateral, 3, "UNDECIDED"),
    ];
    for (name, content, code, says) in cases {
        let file = written(bed.dir.path(), name, &content);

        let output = run(&["--config", &config, "--verify", &file], &[]);

        assert_eq!(output.status.code(), Some(code), "{name}: {}{}", text(&output.stdout), text(&output.stderr));
        assert!(text(&output.stdout).contains(says), "{name}: {}", text(&output.stdout));
    }
}
