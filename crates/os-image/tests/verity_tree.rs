//! Our hash trees are the ones that cryptsetup and the kernel know.
#![allow(clippy::unwrap_used, reason = "tests panic on purpose")]

use std::{fs::File, io::Write as _, process::Command};

use dstack_os_image::verity;

/// Block counts around each change of the tree's depth.
const COUNTS: [u64; 7] = [1, 2, 127, 128, 129, 16_384, 16_385];

#[test]
fn veritysetup_agrees_on_every_depth() {
    for blocks in COUNTS {
        let dir = tempfile::tempdir().unwrap();
        let (data, hash) = (dir.path().join("data"), dir.path().join("hash"));
        let mut file = File::options().read(true).write(true).create_new(true).open(&data).unwrap();
        for block in 0..blocks {
            file.write_all(&[(block % 251) as u8; 4096]).unwrap();
        }
        let tree = verity::Tree::compute(&mut file, blocks * 4096).unwrap();

        let output = Command::new("veritysetup")
            .args(["format", "--hash=sha256", "--data-block-size=4096", "--hash-block-size=4096"])
            .args([format!("--salt={}", "00".repeat(32)).as_str(), "--uuid=00000000-0000-0000-0000-000000000000"])
            .args([&data, &hash])
            .output()
            .unwrap();

        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{output:?}");
        assert!(text.contains(&tree.root().to_string()), "{blocks} blocks: {} is not in {text}", tree.root());
        let theirs = std::fs::read(&hash).unwrap();
        assert_eq!(tree.bytes().len(), theirs.len().max(4096), "{blocks} blocks");
        assert_eq!(tree.bytes()[..theirs.len()], theirs[..], "{blocks} blocks");
    }
}

#[test]
fn refuses_data_that_is_not_whole_blocks() {
    for bytes in [0, 1, 4095, 4097] {
        let mut data = std::io::Cursor::new(vec![0; 8192]);

        assert!(matches!(verity::Tree::compute(&mut data, bytes), Err(verity::VerityError::DataSize { .. })), "{bytes}");
    }
}
