//! The database: what VMs there are, what they hold, what happened to them.
//!
//! One connection behind one lock writes; every change is one transaction, on disk when the call returns.

mod events;
mod reservations;
mod vms;

use std::{fs, os::unix::fs::OpenOptionsExt as _, path::Path, sync::Mutex};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub(crate) use reservations::{Limits, PortReservation};
pub(crate) use vms::{NewVm, VmRow};

use crate::VmmError;

/// Version of the tables in `user_version`.
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
CREATE TABLE vm (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, app_id TEXT NOT NULL, compose_hash TEXT NOT NULL, image TEXT NOT NULL,
    revision INTEGER NOT NULL, cid INTEGER NOT NULL UNIQUE, vcpu INTEGER NOT NULL, memory_mib INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL, started INTEGER NOT NULL DEFAULT 0, removing INTEGER NOT NULL DEFAULT 0,
    creating INTEGER NOT NULL DEFAULT 1,
    started_at_ms INTEGER NOT NULL DEFAULT 0, ended_at_ms INTEGER NOT NULL DEFAULT 0, end_reason TEXT NOT NULL DEFAULT '',
    boot_progress TEXT NOT NULL DEFAULT '', boot_error TEXT NOT NULL DEFAULT '', shutdown_progress TEXT NOT NULL DEFAULT '',
    image_version TEXT NOT NULL DEFAULT '', instance_info TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE revision (
    vm_id TEXT NOT NULL REFERENCES vm(id) ON DELETE CASCADE, number INTEGER NOT NULL, created_at_ms INTEGER NOT NULL,
    configuration BLOB NOT NULL, PRIMARY KEY (vm_id, number)
) STRICT;
CREATE TABLE port (
    protocol TEXT NOT NULL, address TEXT NOT NULL, host_port INTEGER NOT NULL,
    vm_id TEXT NOT NULL REFERENCES vm(id) ON DELETE CASCADE, PRIMARY KEY (protocol, address, host_port)
) STRICT;
CREATE TABLE event (
    number INTEGER PRIMARY KEY AUTOINCREMENT, vm_id TEXT NOT NULL REFERENCES vm(id) ON DELETE CASCADE,
    event TEXT NOT NULL, body TEXT NOT NULL, at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX event_by_vm ON event (vm_id, number);
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at_ms INTEGER NOT NULL, request_id TEXT NOT NULL, peer TEXT NOT NULL,
    action TEXT NOT NULL, subject TEXT NOT NULL, outcome TEXT NOT NULL
) STRICT;
CREATE TABLE verified_image (dir TEXT PRIMARY KEY, fingerprint TEXT NOT NULL) STRICT;
";

/// The open database.
#[derive(Debug)]
pub(crate) struct Database {
    connection: Mutex<Connection>,
}

impl Database {
    /// Opens or creates the file.
    ///
    /// Errors: not accessible, damaged, or written by a newer release.
    pub(crate) fn open(path: &Path) -> Result<Self, VmmError> {
        // It holds sealed environments and user configurations. SQLite gives its side files the same mode.
        let created = fs::File::options().append(true).create(true).mode(0o600).open(path);
        created.map_err(VmmError::io("opening", path))?;
        let mut connection = Connection::open(path)?;
        connection.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON; PRAGMA busy_timeout = 2000; PRAGMA cache_size = -512;",
        )?;
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version: i64 = transaction.pragma_query_value(None, "user_version", |row| row.get(0))?;
        match version {
            0 => {
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
            }
            SCHEMA_VERSION => {}
            other => {
                let reason = format!("{} has schema {other}, this release knows {SCHEMA_VERSION}", path.display());
                return Err(VmmError::Internal(reason));
            }
        }
        transaction.commit()?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, VmmError> {
        let connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Ok(read(&connection)?)
    }

    fn write<T>(&self, write: impl FnOnce(&Transaction<'_>) -> Result<T, VmmError>) -> Result<T, VmmError> {
        let mut connection = self.connection.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let result = write(&transaction)?;
        transaction.commit()?;
        Ok(result)
    }
}

#[cfg(test)]
mod tests;
