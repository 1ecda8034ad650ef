//! Writes initrd archives (cpio, format `newc`), the same bytes for the same content.
//!
//! Source: Linux `Documentation/driver-api/early-userspace/buffer-format.rst`.

use std::collections::BTreeMap;

/// What a path is.
enum Node {
    Directory,
    File { content: Vec<u8>, executable: bool },
    Link { target: String },
}

/// An archive in memory. Paths are absolute; parents are added.
#[derive(Default)]
pub(super) struct Cpio {
    nodes: BTreeMap<String, Node>,
}

impl Cpio {
    pub(super) fn directory(&mut self, path: &str) {
        self.add(path, Node::Directory);
    }

    pub(super) fn file(&mut self, path: &str, content: Vec<u8>, executable: bool) {
        self.add(path, Node::File { content, executable });
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        self.add(path, Node::Link { target: target.to_owned() });
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.nodes.contains_key(path.trim_start_matches('/'))
    }

    fn add(&mut self, path: &str, node: Node) {
        let path = path.trim_matches('/');
        for (index, _) in path.match_indices('/') {
            if let Some(parent) = path.get(..index) {
                self.nodes.entry(parent.to_owned()).or_insert(Node::Directory);
            }
        }
        self.nodes.insert(path.to_owned(), node);
    }

    /// The archive. A parent sorts before what is in it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, (path, node)) in self.nodes.iter().enumerate() {
            let (mode, links, content): (u32, u32, &[u8]) = match node {
                Node::Directory => (0o040_755, 2, &[]),
                Node::File { content, executable: true } => (0o100_755, 1, content),
                Node::File { content, executable: false } => (0o100_644, 1, content),
                Node::Link { target } => (0o120_777, 1, target.as_bytes()),
            };
            entry(&mut bytes, path, [index as u32 + 1, mode, links], content);
        }
        entry(&mut bytes, "TRAILER!!!", [0, 0, 1], &[]);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn entry(bytes: &mut Vec<u8>, path: &str, [inode, mode, links]: [u32; 3], content: &[u8]) {
    // Inode, mode, owner, group, links, time, size, device numbers (4), length of the name, checksum.
    let fields = [inode, mode, 0, 0, links, 0, content.len() as u32, 0, 0, 0, 0, path.len() as u32 + 1, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_additions_does_not_matter() {
        let mut one = Cpio::default();
        one.file("/init", b"#!".to_vec(), true);
        one.link("/lib64", "usr/lib64");
        one.file("/usr/lib/x.so", vec![1; 5], false);
        let mut two = Cpio::default();
        two.file("/usr/lib/x.so", vec![1; 5], false);
        two.directory("/usr");
        two.link("/lib64", "usr/lib64");
        two.file("/init", b"#!".to_vec(), true);

        let bytes = one.into_bytes();

        assert_eq!(bytes, two.into_bytes());
        assert_eq!(bytes.len() % 512, 0);
        assert!(bytes.starts_with(b"070701"));
    }
}
