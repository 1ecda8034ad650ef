//! What is refused is refused with code, cause and fix, and leaves no VM, file, reservation, process or permission behind.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests panic on purpose")]

use std::{
    fs,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
};

use dstack_e2e::{Finished, Holdings, Stack, hello, os_image};

/// A compose file that nothing is wrong with.
fn good(stack: &Stack) -> PathBuf {
    let file = stack.home().join("good.yaml");
    fs::write(&file, "services:\n  web:\n    image: example:1\n").unwrap();
    file
}

fn deploy(stack: &Stack, compose: &Path, extra: &[&str]) -> Finished {
    let mut arguments = vec!["deploy", "-c", compose.to_str().unwrap(), "-n", "bad", "--no-wait"];
    arguments.extend(extra);
    stack.dstack(&arguments)
}

struct Case<'a> {
    what: &'a str,
    compose: &'a Path,
    options: &'a [&'a str],
    code: &'a str,
    cause: &'a str,
    fix: &'a str,
}

#[test]
fn refused_deployments_say_why_and_leave_nothing() {
    let stack = Stack::start();
    let good = good(&stack);
    let malformed = stack.home().join("malformed.yaml");
    fs::write(&malformed, "services:\n  web:\n    image: [unclosed\n").unwrap();
    let empty = stack.home().join("empty.yaml");
    fs::write(&empty, "services: {}\n").unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let publish = format!("{port}:80");
    let no_archive = hello().join("docker-compose.yaml");
    let (publish, archive) = (["--yes", "-p", &publish], ["--yes", "--image-archive", no_archive.to_str().unwrap()]);
    let before = Holdings::of(&stack);

    let case = |what, options, code, cause, fix| Case { what, compose: &good, options, code, cause, fix };
    let cases = [
        Case {
            compose: &malformed,
            ..case("malformed compose file", &["--yes"], "compose/syntax", "malformed.yaml:4:1", "correct line 4")
        },
        Case { compose: &empty, ..case("no services", &["--yes"], "compose/no-services", "services", "services") },
        case("unknown image", &["--yes", "--image", "no-such-image"], "image/not-found", "no-such-image", "dstack os list"),
        case("too little memory", &["--yes", "--memory", "16M"], "vmm/bad-field", "16 MiB is below the minimum", "memory"),
        case("not enough memory", &["--yes", "--memory", "1T"], "vmm/not-enough-memory", "1048576 MiB of memory asked", "ask for less"),
        case("not enough CPUs", &["--yes", "--vcpu", "255"], "vmm/not-enough-vcpus", "255 vCPUs asked", "ask for less"),
        case("port in use", &publish, "vmm/port-in-use", &port, "-p auto:80"),
        case("nobody confirms", &[], "deploy/not-confirmed", "allow list", "--yes"),
        case("no image archive", &archive, "volume/bad-archive", "docker-compose.yaml", "skopeo copy"),
    ];
    for Case { what, compose, options, code, cause, fix } in cases {
        println!("{what}");
        deploy(&stack, compose, options).must_fail_with(code).must_say(cause, fix);
        stack.must_hold_only(&before);
    }
}

#[test]
fn secrets_for_a_kms_that_is_down_are_not_sealed_and_nothing_is_deployed() {
    let stack = Stack::start();
    let good = good(&stack);
    let secrets = stack.home().join("secrets.env");
    fs::write(&secrets, "SECRET=of-mine\n").unwrap();
    stack.kill("dstack-kms");
    let before = Holdings::of(&stack);

    let refused = deploy(&stack, &good, &["--yes", "-e", secrets.to_str().unwrap()]);

    refused.must_fail_with("kms/unreachable").must_say("127.0.0.1", "dstack up");
    stack.must_hold_only(&before);
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
    let good = good(&stack);
    let before = Holdings::of(&stack);

    let refused = deploy(&stack, &good, &["--yes", "--image", "dstack-dev-9.9.9"]);

    refused.must_fail_with("image/tampered").must_say("rootfs", "dstack os build");
    stack.must_hold_only(&before);
}

fn must_flip_a_bit(file: &Path, offset: u64) {
    let mut file = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(offset)).unwrap();
    file.write_all(&[byte[0] ^ 1]).unwrap();
}
