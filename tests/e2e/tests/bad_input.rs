//! What is refused is refused with code, cause and fix, and leaves no VM, file, reservation or process.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
};

use dstack_e2e::{Stack, hello, os_image};
use serde_json::Value;

fn deploy(stack: &Stack, compose: &Path, extra: &[&str]) -> dstack_e2e::Finished {
    let mut arguments = vec!["deploy", "-c", compose.to_str().unwrap(), "-n", "bad", "--yes", "--no-wait"];
    arguments.extend(extra);
    stack.dstack(&arguments)
}

/// Everything under the VMM's directory but its database, log and token.
fn vm_files(stack: &Stack) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![stack.home().join("vmm/vm"), stack.home().join("volumes")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
        }
    }
    found
}

fn must_leave_nothing(stack: &Stack, processes: usize) {
    assert_eq!(stack.dstack(&["ps", "--json"]).must_succeed().json(), Value::Array(Vec::new()));
    assert_eq!(vm_files(stack), Vec::<PathBuf>::new());
    assert_eq!(stack.processes().len(), processes, "{:#?}", stack.processes());
}

#[test]
fn refused_deployments_say_why_and_leave_nothing() {
    let stack = Stack::start();
    let processes = stack.processes().len();
    let good = stack.home().join("good.yaml");
    fs::write(&good, "services:\n  web:\n    image: example:1\n").unwrap();

    let malformed = stack.home().join("malformed.yaml");
    fs::write(&malformed, "services:\n  web:\n    image: [unclosed\n").unwrap();
    let text = deploy(&stack, &malformed, &[]).must_fail_with("compose/syntax");
    assert!(text.contains("line"), "{text}");
    must_leave_nothing(&stack, processes);

    deploy(&stack, &good, &["--image", "no-such-image"]).must_fail_with("vmm/unknown-image");
    must_leave_nothing(&stack, processes);

    for memory in ["16M", "100T"] {
        let finished = deploy(&stack, &good, &["--memory", memory]);
        assert_ne!(finished.code, 0, "{memory}");
        assert!(finished.stderr.contains("fix:") && finished.stderr.contains("memory"), "{}", finished.stderr);
        must_leave_nothing(&stack, processes);
    }

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("{}:80", taken.local_addr().unwrap().port());
    deploy(&stack, &good, &["-p", &port]).must_fail_with("vmm/port-in-use");
    must_leave_nothing(&stack, processes);

    let archive = hello().join("docker-compose.yaml");
    let not_an_archive = deploy(&stack, &good, &["--image-archive", archive.to_str().unwrap()]);
    not_an_archive.must_fail_with("volume/bad-archive");
    must_leave_nothing(&stack, processes);
}

#[test]
fn a_tampered_root_image_is_not_booted() {
    let images = tempfile::tempdir().unwrap();
    let copy = images.path().join("dstack-dev-9.9.9");
    fs::create_dir(&copy).unwrap();
    for entry in fs::read_dir(os_image()).unwrap().flatten() {
        fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    must_flip_a_bit(&copy.join("rootfs.img"), 5_000_000);
    let stack = Stack::start_with(&["--images", images.path().to_str().unwrap()]);
    let processes = stack.processes().len();
    let good = stack.home().join("good.yaml");
    fs::write(&good, "services:\n  web:\n    image: example:1\n").unwrap();

    let refused = deploy(&stack, &good, &["--image", "dstack-dev-9.9.9"]);

    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("fix:") && refused.stderr.contains("rootfs"), "{}", refused.stderr);
    must_leave_nothing(&stack, processes);
}

fn must_flip_a_bit(file: &Path, offset: u64) {
    let mut file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}
