//! What guests reported, who asked for what, which images were checked.

use dstack_api::vmm::GuestEvent;
use dstack_service::clock::unix_millis;
use rusqlite::{OptionalExtension as _, params};

use super::Database;
use crate::VmmError;

/// Entries kept in the audit log.
const AUDIT_ENTRIES: u32 = 10_000;

impl Database {
    /// Appends an event of a VM and drops all but the newest `keep`.
    pub(crate) fn add_event(&self, vm_id: &str, event: &str, body: &str, keep: u32) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO event (vm_id, event, body, at_ms) VALUES (?1, ?2, ?3, ?4)",
                params![vm_id, event, body, unix_millis()],
            )?;
            transaction.execute(
                "DELETE FROM event WHERE vm_id = ?1 AND number <= (SELECT number FROM event WHERE vm_id = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                params![vm_id, keep],
            )?;
            Ok(())
        })
    }

    /// Events of a VM, oldest first.
    pub(crate) fn events(&self, vm_id: &str) -> Result<Vec<GuestEvent>, VmmError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT event, body, at_ms FROM event WHERE vm_id = ?1 ORDER BY number")?;
            let rows =
                statement.query_map([vm_id], |row| Ok(GuestEvent { event: row.get(0)?, body: row.get(1)?, timestamp: row.get(2)? }))?;
            rows.collect()
        })
    }

    /// Writes down who asked for what and how it went.
    pub(crate) fn audit(&self, request_id: &str, peer: &str, action: &str, subject: &str, outcome: &str) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute(
                "INSERT INTO audit (at_ms, request_id, peer, action, subject, outcome) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
                params![unix_millis(), request_id, peer, action, subject, outcome],
            )?;
            transaction.execute("DELETE FROM audit WHERE number <= (SELECT max(number) FROM audit) - ?1", [AUDIT_ENTRIES])?;
            Ok(())
        })
    }

    /// What `dir` looked like when its image was verified.
    pub(crate) fn verified_image(&self, dir: &str) -> Result<Option<String>, VmmError> {
        self.read(|connection| {
            connection.query_row("SELECT fingerprint FROM verified_image WHERE dir = ?1", [dir], |row| row.get(0)).optional()
        })
    }

    /// Remembers that the image in `dir` was verified while it looked like `fingerprint`.
    pub(crate) fn set_verified_image(&self, dir: &str, fingerprint: &str) -> Result<(), VmmError> {
        self.write(|transaction| {
            transaction.execute("INSERT OR REPLACE INTO verified_image (dir, fingerprint) VALUES (?1, ?2)", params![dir, fingerprint])?;
            Ok(())
        })
    }
}
