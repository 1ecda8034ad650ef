//! What a stack holds on this machine: compared before and after, it shows what a refusal left behind.

use std::{
    fs,
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use rusqlite::Connection;

use crate::Stack;

/// Everything that a VM can leave behind, sorted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holdings {
    /// Rows of the VMM's database: VMs with context id and size, revisions, host ports, events.
    pub reservations: Vec<String>,
    /// Files of VMs, packed volumes, and the software TEE's registers.
    pub files: Vec<PathBuf>,
    /// What the supervisor keeps records of.
    pub supervised: Vec<String>,
    /// Command lines of live processes, QEMU's among them.
    pub processes: Vec<String>,
    /// Sockets anywhere below the stack's home.
    pub sockets: Vec<PathBuf>,
    /// What the local KMS hands keys to.
    pub allowed: String,
}

impl Holdings {
    /// What `stack` holds now.
    ///
    /// # Panics
    /// When its state cannot be read.
    #[must_use]
    pub fn of(stack: &Stack) -> Self {
        let home = stack.home();
        let mut files = Vec::new();
        for folder in ["vmm/vm", "volumes", "tee/state/td"] {
            walk(&home.join(folder), &mut files);
        }
        let mut all = Vec::new();
        walk(home, &mut all);
        let is_socket = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
        let mut supervised = Vec::new();
        walk(&home.join("supervisor"), &mut supervised);
        let supervised = supervised.into_iter().filter(|path| path.extension().is_some_and(|ext| ext == "json"));
        let mut holdings = Self {
            reservations: reservations(&home.join("vmm/vmm.sqlite")),
            files,
            supervised: supervised.map(|path| path.display().to_string()).collect(),
            processes: stack.processes().into_iter().map(|(_, line)| line).collect(),
            sockets: all.into_iter().filter(is_socket).collect(),
            allowed: fs::read_to_string(home.join("kms/allow-list.toml")).unwrap_or_default(),
        };
        holdings.files.sort();
        holdings.supervised.sort();
        holdings.processes.sort();
        holdings.sockets.sort();
        holdings
    }
}

/// Every file below `folder`, directories not included, links not followed.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) { walk(&entry.path(), found) } else { found.push(entry.path()) }
    }
}

fn reservations(database: &Path) -> Vec<String> {
    let rows = "SELECT 'vm ' || id || ' cid ' || cid || ' vcpu ' || vcpu || ' memory ' || memory_mib FROM vm
                UNION SELECT 'revision of ' || vm_id FROM revision
                UNION SELECT 'port ' || protocol || ' ' || address || ':' || host_port || ' of ' || vm_id FROM port
                UNION SELECT 'event of ' || vm_id FROM event ORDER BY 1";
    let read = || -> rusqlite::Result<Vec<String>> {
        let connection = Connection::open(database)?;
        let mut statement = connection.prepare(rows)?;
        statement.query_map([], |row| row.get(0))?.collect()
    };
    read().unwrap_or_else(|error| panic!("{}: {error}", database.display()))
}

impl Stack {
    /// Asserts that the stack holds what it held at `before`, and nothing more.
    ///
    /// # Panics
    /// When it does not; what differs is shown.
    pub fn must_hold_only(&self, before: &Holdings) {
        let now = Holdings::of(self);
        assert_eq!(now.reservations, before.reservations, "reservations");
        assert_eq!(now.files, before.files, "files");
        assert_eq!(now.supervised, before.supervised, "processes known to the supervisor");
        assert_eq!(now.processes, before.processes, "processes");
        assert_eq!(now.sockets, before.sockets, "sockets");
        assert_eq!(now.allowed, before.allowed, "allow list of the KMS");
        assert_eq!(self.dstack(&["ps", "--json"]).must_succeed().json().as_array().map(Vec::len), Some(now.vms()), "VMs shown");
    }
}

impl Holdings {
    fn vms(&self) -> usize {
        self.reservations.iter().filter(|row| row.starts_with("vm ")).count()
    }
}
